"""dice_bce_loss: value and gradient on every backend, over dtypes, layouts, shapes and options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.cpu import assert_threads_change_nothing
from tests.ops.dice_bce_loss_eager import LABEL_DTYPES, OPTIONS, check, eager, fill, make_target
from tests.ops.loss_eager import gradients_of_map

LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("layout", LAYOUTS + VIEWS)
@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_dtypes_and_layouts(
    dtype: torch.dtype, label_dtype: torch.dtype, layout: str, kernel_backend: str, device: str
) -> None:
    shape = (2, 5, 7, 19)
    target = make_target(shape, label_dtype, 255, device=device)
    options = {"ignore_index": 255, "pos_weight": "per channel", "pixel_weight": "per pixel"}
    check(make_logits(shape, dtype, layout, device=device), target, kernel_backend, options)


@pytest.mark.parametrize("layout", [*LAYOUTS, "channels_last_channel_slice"])
@pytest.mark.parametrize("spatial", [(5, 13), (3, 5, 7), (2, 9, 8), (2, 3, 2, 5)], ids=lambda s: f"{len(s)}-D{s}")
def test_spatial_dimensions(spatial: tuple[int, ...], layout: str, backend: str, device: str) -> None:
    shape = (2, 4, *spatial)
    check(make_logits(shape, layout=layout, device=device), make_target(shape, device=device), backend)


# Kernels work in blocks of up to 1024 elements and hand blocks to threads in portions of a few thousand.
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 63, 64, 65, 193, 1023, 1024, 1025, 1091, 4099, 12289])
def test_pixel_counts_around_the_block_sizes(
    count: int, channels: int, layout: str, kernel_backend: str, device: str
) -> None:
    shape = (2, channels, 1, count)
    target = make_target(shape, ignore_index=255, device=device)
    target[0, 0, 0, 0] = 0  # one element at least counts
    logits = make_logits(shape, layout=layout, device=device)
    check(logits, target, kernel_backend, {"ignore_index": 255})
    check(logits, target % 2, kernel_backend)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 1, 1, 1), (3, 7, 1, 1), (1, 2, 1, 31), (2, 1, 37, 1), (5, 41, 43)])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_one_pixel_one_row_and_prime_sizes(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: str
) -> None:
    target = make_target(shape, torch.float32, device=device)
    check(make_logits(shape, dtype, device=device), target, backend, gradient_scale=1 / math.prod(shape))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 14, 19, 21, 150, 257, 1000])
def test_channel_counts(channels: int, dtype: torch.dtype, layout: str, kernel_backend: str, device: str) -> None:
    shape = (2, channels, 5, 13)
    logits, target = make_logits(shape, dtype, layout, device=device), make_target(shape, device=device)
    check(logits, target, kernel_backend, {"pos_weight": "per channel"})
    check(logits, target, kernel_backend, {"pixel_weight": "per pixel", "focal_gamma": 2.0})


@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(options: dict[str, Any], layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    shape = (3, 4, 11, 13)
    target = make_target(shape, torch.float32, options.get("ignore_index"), device=device)
    scale = float(target.numel()) if options.get("reduction") == "sum" else 1.0
    check(make_logits(shape, dtype, layout, device=device), target, backend, options, value_scale=scale)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradcheck(options: dict[str, Any], backend: str, device: str) -> None:
    height, width = (1, 2) if backend == "triton" and device == "cpu" else (2, 3)
    logits = make_logits((2, 3, height, width), torch.float64, scale=1.0, device=device).requires_grad_()
    target = make_target((2, 3, height, width), torch.float32, options.get("ignore_index"), device=device)
    arguments = fill(options, logits)
    assert torch.autograd.gradcheck(lambda x: segops.dice_bce_loss(x, target, backend=backend, **arguments), logits)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["default", "pixel weight", "focal 0.5", "ignore a class"])
def test_map(name: str, dtype: torch.dtype, layout: str, backend: str, device: str) -> None:
    """reduction="none" with an arbitrary gradient of the map."""
    shape = (2, 5, 9, 14)
    options = {**OPTIONS[name], "reduction": "none", "dice_weight": 0.0}
    target = make_target(shape, torch.float32, options.get("ignore_index"), device=device)
    logits = make_logits(shape, dtype, layout, device=device)
    for gradient in gradients_of_map(shape, device):
        check(logits, target, backend, options, upstream=gradient)


def test_map_has_the_layout_of_the_logits(kernel_backend: str, device: str) -> None:
    target = make_target((2, 3, 5, 7), device=device)
    for layout in ("contiguous", "channels_last"):
        logits = make_logits((2, 3, 5, 7), layout=layout, device=device)
        loss = segops.dice_bce_loss(logits, target, reduction="none", dice_weight=0, backend=kernel_backend)
        assert loss.stride() == logits.stride()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4), (0, 3, 0, 0), (1, 1, 0, 1)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["default", "only cross-entropy", "only overlap", "no smooth"])
def test_empty(shape: tuple[int, ...], reduction: str, name: str, backend: str, device: str) -> None:
    target = torch.zeros(shape, dtype=torch.uint8, device=device)
    result = check(torch.zeros(shape, device=device), target, backend, {**OPTIONS[name], "reduction": reduction})
    assert result.actual.gradient.shape == shape


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_everything_ignored(reduction: str, backend: str, device: str) -> None:
    """The mean over nothing is NaN, with a gradient of zero; empty against empty is a perfect score, 0/0 included."""
    target = torch.full((2, 3, 5, 6), 7, dtype=torch.uint8, device=device)
    logits = make_logits((2, 3, 5, 6), device=device)
    logits[0, 1] = float("nan")
    logits.requires_grad_()
    options: dict[str, Any] = {"ignore_index": 7, "backend": backend}
    loss = segops.dice_bce_loss(logits, target, reduction=reduction, dice_weight=0, **options)
    loss.backward()
    assert loss.isnan() if reduction == "mean" else loss == 0
    for smooth in (0.0, 1e-5):
        overlap = segops.dice_bce_loss(logits, target, bce_weight=0, smooth=smooth, **options)
        overlap.backward()
        assert overlap.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("value", [0.0, 20.0, 90.0, 1e4, -1e4, float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("label", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_saturated_logits_are_as_in_torch(
    dtype: torch.dtype, label: float, value: float, backend: str, device: str
) -> None:
    logits = torch.full((1, 1, 1, 3), value, dtype=dtype, device=device).requires_grad_()
    target = torch.full_like(logits, label, requires_grad=False)
    options: dict[str, Any] = {"reduction": "none", "dice_weight": 0.0, "backend": backend}
    ours = segops.dice_bce_loss(logits, target, **options)
    theirs = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if math.isinf(value):
        # Away from a label, -infinity is 0 * infinity for torch, and infinity for whoever adds the two parts.
        assert not ours.isfinite().any()
        return
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-37, equal_nan=True)  # subnormals are zero
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    (expected,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    for gamma in (0.5, 1.0, 2.0, 3.7):
        x = logits.detach().requires_grad_()
        focal = segops.dice_bce_loss(x, target, focal_gamma=gamma, **options)
        (gradient,) = torch.autograd.grad(focal.sum(), x)
        finite = not math.isnan(value)
        assert bool(focal.isfinite().all()) == finite
        assert bool(gradient.isfinite().all()) == finite


def test_large_logits(backend: str, device: str) -> None:
    for scale in (30.0, 1000.0):
        logits = make_logits((2, 3, 9, 11), scale=scale, device=device)
        target = make_target((2, 3, 9, 11), device=device)
        check(logits, target, backend, value_scale=scale)
        check(logits, target, backend, {"focal_gamma": 2.0}, value_scale=scale)


def test_garbage_at_ignored_elements(backend: str, device: str) -> None:
    target = make_target((2, 3, 5, 6), ignore_index=255, device=device)
    logits = make_logits((2, 3, 5, 6), device=device)
    expected = logits.clone().requires_grad_()
    loss = segops.dice_bce_loss(expected, target, ignore_index=255, backend=backend)
    loss.backward()
    for garbage in (float("nan"), float("inf"), -1e30):
        x = torch.where(target == 255, garbage, logits).requires_grad_()
        other = segops.dice_bce_loss(x, target, ignore_index=255, backend=backend)
        other.backward()
        assert torch.equal(loss, other)
        assert torch.equal(x.grad, expected.grad)
        assert not x.grad[target == 255].any()


def test_nan_counts(backend: str, device: str) -> None:
    logits = make_logits((2, 3, 5, 6), device=device)
    logits[1, 2, 3, 4] = float("nan")
    target = make_target((2, 3, 5, 6), device=device)
    x = logits.clone().requires_grad_()
    segops.dice_bce_loss(x, target, bce_weight=0.0, backend=backend).backward()
    assert x.grad[1, 2].isnan().all()
    assert x.grad[0].isfinite().all()
    assert x.grad[1, :2].isfinite().all()


def test_textbook_formula(backend: str, device: str) -> None:
    """The reference itself, against the definitions written as loops over numbers."""
    n, c, s, gamma, smooth = 2, 3, 4, 1.7, 0.3
    logits = make_logits((n, c, 1, s), torch.float64, scale=1.0, device=device)
    target = make_target((n, c, 1, s), torch.float64, 255, device=device)
    weight, pixel_weight = [0.5, 2.0, 1.5], [[1.0, 0.25, 2.0, 3.0], [1.0, 1.0, 0.5, 4.0]]
    loss = share = 0.0
    scores = []
    for i in range(n):
        for j in range(c):
            a = p_sum = t_sum = 0.0
            for k in range(s):
                x, t = logits[i, j, 0, k].item(), target[i, j, 0, k].item()
                if t == 255:
                    continue
                p = 1 / (1 + math.exp(-x))
                p_t = p * t + (1 - p) * (1 - t)
                plain = -weight[j] * t * math.log(p) - (1 - t) * math.log(1 - p)
                loss += pixel_weight[i][k] * (1 - p_t) ** gamma * plain
                share += pixel_weight[i][k]
                a, p_sum, t_sum = a + p * t, p_sum + p, t_sum + t
            scores.append((2 * a + smooth) / (p_sum + t_sum + smooth))
    expected = loss / share + sum(1 - score for score in scores) / (n * c)
    ours = segops.dice_bce_loss(
        logits,
        target,
        pos_weight=torch.tensor(weight, device=device),
        pixel_weight=torch.tensor(pixel_weight, device=device).view(n, 1, s),
        ignore_index=255,
        focal_gamma=gamma,
        smooth=smooth,
        backend=backend,
    )
    assert ours.item() == pytest.approx(expected, rel=1e-13)


def test_shapes_of_weights_and_of_binary_logits(backend: str, device: str) -> None:
    logits, target = make_logits((2, 1, 5, 6), device=device), make_target((2, 1, 5, 6), device=device)
    weight = torch.rand(2, 5, 6, device=device)
    expected = segops.dice_bce_loss(logits, target, pixel_weight=weight, backend=backend)
    for shape in ((2, 1, 5, 6), (2, 5, 6)):
        for x, t in ((logits, target), (logits[:, 0], target[:, 0])):
            loss = segops.dice_bce_loss(x, t, pixel_weight=weight.view(shape), backend=backend)
            assert torch.equal(loss, expected)
    logits, target = make_logits((2, 3, 5, 6), device=device), make_target((2, 3, 5, 6), device=device)
    per_channel = torch.tensor([0.5, 2.0, 3.0], device=device)
    for given in (per_channel, torch.tensor(2.0, device=device)):
        full = given.expand(3)
        expected = segops.dice_bce_loss(logits, target, pos_weight=full, backend=backend)
        for view in (given, given.view(-1, 1, 1), given.view(1, -1, 1, 1)):
            assert torch.equal(segops.dice_bce_loss(logits, target, pos_weight=view, backend=backend), expected)


def test_soft_labels_may_overshoot_a_little(backend: str, device: str) -> None:
    logits = make_logits((1, 2, 4, 5), torch.float64, device=device)
    target = make_target((1, 2, 4, 5), torch.float64, device=device)
    target[0, 0, 0, :2] = torch.tensor([-0.007, 1.007])
    for gamma in (0.0, 0.5):
        options = {"focal_gamma": gamma}
        check(logits, target, backend, options)
        saturated = torch.full_like(logits, 50.0)
        assert segops.dice_bce_loss(saturated, target, backend=backend, **options).isfinite()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parts_and_scores(layout: str, backend: str, device: str) -> None:
    logits = make_logits((2, 3, 5, 6), torch.float64, layout, device=device).requires_grad_()
    target = make_target((2, 3, 5, 6), torch.float64, device=device)
    loss, parts = segops.dice_bce_loss(logits, target, bce_weight=0.5, return_parts=True, backend=backend)
    prob = logits.detach().sigmoid()
    scores = (2 * (prob * target).sum((2, 3)) + 1e-5) / (prob.sum((2, 3)) + target.sum((2, 3)) + 1e-5)
    torch.testing.assert_close(parts.scores, scores, rtol=1e-13, atol=0)
    torch.testing.assert_close(parts.dice, 1 - scores.mean(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(parts.bce, F.binary_cross_entropy_with_logits(logits.detach(), target))
    torch.testing.assert_close(loss, 0.5 * parts.bce + parts.dice)
    assert not any(part.requires_grad for part in parts)
    assert torch.equal(loss, segops.dice_bce_loss(logits, target, bce_weight=0.5, backend=backend))


def test_gradient_keeps_the_memory_format(backend: str, device: str) -> None:
    for shape in ((2, 4, 6, 11), (2, 4, 3, 5, 7), (2, 1, 6, 11)):
        target = make_target(shape, device=device)
        for layout in ("contiguous", "channels_last"):
            logits = make_logits(shape, layout=layout, device=device).requires_grad_()
            segops.dice_bce_loss(logits, target, backend=backend).backward()
            assert logits.grad.stride() == logits.stride()


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
def test_target_and_weights_in_any_layout(label_dtype: torch.dtype, backend: str, device: str) -> None:
    wide = make_target((4, 4, 12, 21), label_dtype, device=device)
    weights = torch.rand(4, 4, 12, 21, device=device)
    for layout in ("contiguous", "channels_last"):
        logits = make_logits((2, 3, 6, 10), layout=layout, device=device)
        for view in (
            lambda t: t[::2, 1:, ::2, 1::2],
            lambda t: t[1:2, :1, :6, 3:13].expand(2, 3, 6, 10),
            lambda t: t[2:, :3, :10, :6].transpose(2, 3),
            lambda t: t[:2, :3, :6, :10].movedim(1, -1).contiguous().movedim(-1, 1),
        ):
            target, weight = view(wide), view(weights)
            loss = segops.dice_bce_loss(logits, target, pixel_weight=weight, backend=backend)
            plain = segops.dice_bce_loss(logits, target.contiguous(), pixel_weight=weight.contiguous(), backend=backend)
            if backend == "reference":
                torch.testing.assert_close(loss, plain)
            else:
                assert torch.equal(loss, plain)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 3, 130, 131), "contiguous"), ((2, 14, 65, 67), "channels_last"), ((40, 9, 9, 9), "sliced")],
)
def test_number_of_threads_changes_nothing(shape: tuple[int, ...], layout: str) -> None:
    logits, target = make_logits(shape, layout=layout), make_target(shape, torch.float32, 255)

    def run() -> tuple[Tensor, ...]:
        x = logits.clone().requires_grad_()
        loss, parts = segops.dice_bce_loss(x, target, ignore_index=255, return_parts=True, backend="native")
        return loss.detach(), *parts, *torch.autograd.grad(loss, x)

    assert_threads_change_nothing(run, 1, 2, 3)


def test_large_gradients_are_written_past_the_caches() -> None:
    """Streaming stores, which a second call of the same size has memory for."""
    for shape, layout in (((1, 3, 1920, 1536), "contiguous"), ((1, 3, 1920, 1536), "channels_last")):
        logits, target = make_logits(shape, layout=layout), make_target(shape)
        for _ in range(2):
            x = logits.clone(memory_format=torch.preserve_format).requires_grad_()
            segops.dice_bce_loss(x, target, backend="native").backward()
            y = logits.clone(memory_format=torch.preserve_format).requires_grad_()
            eager(y, target).backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-12)


def test_empty_map(backend: str, device: str) -> None:
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        target = torch.zeros(shape, dtype=torch.uint8, device=device)
        logits: Tensor = torch.zeros(shape, device=device)
        loss = segops.dice_bce_loss(logits, target, reduction="none", dice_weight=0.0, backend=backend)
        assert loss.shape == shape
