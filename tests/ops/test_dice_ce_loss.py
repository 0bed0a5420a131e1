"""dice_ce_loss: value and gradient on every backend, over dtypes, layouts, shapes and options."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from segops.reference import dice_ce_loss as reference
from tests.cases import LAYOUTS, VIEWS, make_logits, random_labels
from tests.cpu import assert_threads_change_nothing
from tests.ops.dice_ce_loss_eager import OPTIONS, eager, fill
from tests.ops.loss_eager import gradients_of_map
from tests.tolerances import Comparison, assert_near, compare

LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def check(
    logits: Tensor, target: Tensor, backend: str, options: dict[str, Any] | None = None, **scales: Any
) -> Comparison:
    """Value and gradient against the eager formula."""
    arguments = fill(options or {}, logits)
    ours = functools.partial(segops.dice_ce_loss, target=target, backend=backend, **arguments)
    return compare(ours, functools.partial(eager, target=target, **arguments), logits, **scales)


def pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:])


@pytest.mark.parametrize("layout", LAYOUTS + VIEWS)
@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_dtypes_and_layouts(
    dtype: torch.dtype, label_dtype: torch.dtype, layout: str, kernel_backend: str, device: str
) -> None:
    shape = (2, 5, 7, 19)
    logits = make_logits(shape, dtype, layout, device=device)
    ignore_index = 255 if label_dtype == torch.uint8 else -100
    target = random_labels(pixels(shape), 5, label_dtype, ignore_index, device=device)
    options = {"ignore_index": ignore_index, "weight": "per class", "pixel_weight": "per pixel"}
    check(logits, target, kernel_backend, options)


@pytest.mark.parametrize("layout", [*LAYOUTS, "channels_last_channel_slice"])
@pytest.mark.parametrize(
    "spatial", [(17,), (130,), (5, 13), (3, 5, 7), (2, 9, 8), (2, 3, 2, 5)], ids=lambda s: f"{len(s)}-D{s}"
)
def test_spatial_dimensions(spatial: tuple[int, ...], layout: str, backend: str, device: str) -> None:
    shape = (2, 4, *spatial)
    check(make_logits(shape, layout=layout, device=device), random_labels(pixels(shape), 4, device=device), backend)


# Kernels work in blocks of 64 to 1024 pixels and hand blocks to threads in portions of a few thousand.
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("classes", [5, 21])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 63, 64, 65, 191, 192, 193, 1023, 1024, 1025, 4099, 12289])
def test_pixel_counts_around_the_block_sizes(
    count: int, classes: int, layout: str, kernel_backend: str, device: str
) -> None:
    shape = (2, classes, count)
    target = random_labels(pixels(shape), classes, ignore_index=-100, device=device)
    target[0, 0] = 0  # one pixel at least counts
    check(make_logits(shape, layout=layout, device=device), target, kernel_backend)


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (1, 1, 1, 1), (3, 7, 1, 1), (1, 2, 1, 31), (2, 2, 37, 1), (1, 4, 41, 43)]
)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_one_pixel_one_row_and_prime_sizes(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: str
) -> None:
    count = math.prod(pixels(shape))
    target = random_labels(pixels(shape), shape[1], device=device)
    check(make_logits(shape, dtype, device=device), target, backend, gradient_scale=1 / count)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 8, 19, 21, 150, 256, 257, 1000])
def test_class_counts(classes: int, dtype: torch.dtype, layout: str, kernel_backend: str, device: str) -> None:
    shape = (2, classes, 5, 13)
    logits, target = (
        make_logits(shape, dtype, layout, device=device),
        random_labels(pixels(shape), classes, device=device),
    )
    # With one class all is exact in theory: the scale is that of the terms that cancel.
    scale = 2 / math.prod(pixels(shape))
    check(logits, target, kernel_backend, gradient_scale=scale)
    check(logits, target, kernel_backend, {"label_smoothing": 0.1, "weight": "per class"}, gradient_scale=scale)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(options: dict[str, Any], layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    shape = (3, 4, 11, 13)
    target = random_labels(pixels(shape), 4, ignore_index=options.get("ignore_index"), device=device)
    target[1][target[1] == 3] = 0  # an absent class
    scale = float(target.numel()) if options.get("reduction") == "sum" else 1.0
    check(make_logits(shape, dtype, layout, device=device), target, backend, options, value_scale=scale)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradcheck(options: dict[str, Any], backend: str, device: str) -> None:
    # Two calls for each logit; gradcheck's fast mode would miss a twentieth of one element's gradient.
    height, width = (1, 2) if backend == "triton" and device == "cpu" else (2, 3)
    logits = make_logits((2, 3, height, width), torch.float64, scale=1.0, device=device).requires_grad_()
    target = random_labels((2, height, width), 3, ignore_index=options.get("ignore_index"), device=device)
    arguments = fill(options, logits)
    assert torch.autograd.gradcheck(lambda x: segops.dice_ce_loss(x, target, backend=backend, **arguments), logits)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["default", "weight and pixel weight", "smoothing and weights", "ignore a class"])
def test_map(name: str, dtype: torch.dtype, layout: str, backend: str, device: str) -> None:
    """reduction="none" against torch's own map, with an arbitrary gradient of the map."""
    shape = (2, 5, 9, 14)
    options = {**OPTIONS[name], "reduction": "none", "dice_weight": 0.0}
    target = random_labels(pixels(shape), 5, ignore_index=options.get("ignore_index", -100), device=device)
    logits = make_logits(shape, dtype, layout, device=device)
    for gradient in gradients_of_map(pixels(shape), device):
        check(logits, target, backend, options, upstream=gradient)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 0), (0, 3, 0, 0), (1, 1, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["default", "batch", "skip absent", "only cross-entropy", "only overlap", "no smooth"])
def test_empty(shape: tuple[int, ...], reduction: str, name: str, backend: str, device: str) -> None:
    target = torch.zeros(pixels(shape), dtype=torch.int64, device=device)
    result = check(torch.zeros(shape, device=device), target, backend, {**OPTIONS[name], "reduction": reduction})
    assert result.actual.gradient.shape == shape
    if name == "only cross-entropy":
        assert torch.equal(
            result.actual.value.nan_to_num(-1),
            F.cross_entropy(torch.zeros(shape, device=device), target, reduction=reduction).nan_to_num(-1),
        )


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_map(shape: tuple[int, ...], backend: str, device: str) -> None:
    target = torch.zeros(pixels(shape), dtype=torch.int64, device=device)
    options = {"reduction": "none", "dice_weight": 0.0}
    result = check(torch.zeros(shape, device=device), target, backend, options)
    assert result.actual.value.shape == target.shape


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_all_pixels_ignored_cross_entropy(smoothing: float, reduction: str, backend: str, device: str) -> None:
    """torch's mean over nothing is NaN, with a gradient of zero."""
    target = torch.full((2, 5, 6), -100, device=device)

    def loss(x: Tensor, **where: Any) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        options = {"label_smoothing": smoothing, "reduction": reduction}
        value = (
            segops.dice_ce_loss(x, target, dice_weight=0, **options, **where)
            if where
            else F.cross_entropy(x, target, **options)
        )
        return value.detach(), torch.autograd.grad(value, x)[0]

    logits = make_logits((2, 3, 5, 6), device=device)
    value, gradient = loss(logits, backend=backend)
    torch_value, torch_gradient = loss(logits)
    assert torch.equal(torch_gradient, torch.zeros_like(logits)), "what this test relies on"
    assert value.isnan() if torch_value.isnan() else torch.equal(value, torch_value)
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_all_pixels_ignored_overlap(smooth: float, batch_dice: bool, backend: str, device: str) -> None:
    """Empty against empty is a perfect score, 0/0 included."""
    target = torch.full((2, 5, 6), 7, device=device)
    logits = make_logits((2, 3, 5, 6), device=device).requires_grad_()
    loss = segops.dice_ce_loss(
        logits, target, ignore_index=7, ce_weight=0, smooth=smooth, batch_dice=batch_dice, backend=backend
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_one_image_ignored_leaves_the_others_alone(backend: str, device: str) -> None:
    target = random_labels((3, 5, 6), 3, device=device)
    target[1] = -100
    for options in ({}, {"smooth": 0.0, "absent_classes": "skip"}, {"batch_dice": True}):
        result = check(make_logits((3, 3, 5, 6), device=device), target, backend, options)
        assert torch.equal(result.actual.gradient[1], torch.zeros_like(result.actual.gradient[1]))


def test_absent_classes(backend: str, device: str) -> None:
    """An absent class with zero smooth scores 0 when counted, and is left out when skipped."""
    logits = torch.zeros(1, 3, 1, 4, dtype=torch.float64, device=device)
    target = torch.tensor([[[0, 0, 1, 1]]], device=device)
    options = {"ce_weight": 0.0, "smooth": 0.0, "backend": backend}
    present = 2 * (2 / 3) / (4 / 3 + 2)  # I = 2/3, P = 4/3, T = 2
    counted = segops.dice_ce_loss(logits, target, **options)
    skipped = segops.dice_ce_loss(logits, target, absent_classes="skip", **options)
    assert counted.item() == pytest.approx((2 * (1 - present) + 1) / 3, rel=1e-14)
    assert skipped.item() == pytest.approx(1 - present, rel=1e-14)
    nobody = segops.dice_ce_loss(logits, torch.full_like(target, -100), absent_classes="skip", **options)
    assert nobody.item() == 0


def test_textbook_formula(device: str, backend: str) -> None:
    """The reference itself, against the definitions written as loops over numbers."""
    n, c, s = 2, 3, 4
    logits = make_logits((n, c, s), torch.float64, scale=1.0, device=device)
    target = torch.tensor([[0, 1, 1, -100], [2, 0, 2, 2]], device=device)
    weight, pixel_weight = [0.5, 2.0, 1.5], [[1.0, 0.25, 2.0, 3.0], [1.0, 1.0, 0.5, 4.0]]
    smoothing, smooth = 0.2, 0.3
    nll = share = 0.0
    sums = [[[0.0, 0.0, 0.0] for _ in range(c)] for _ in range(n)]
    for i in range(n):
        for k in range(s):
            exponentials = [math.exp(logits[i, j, k].item()) for j in range(c)]
            prob = [e / sum(exponentials) for e in exponentials]
            label = target[i, k].item()
            if label == -100:
                continue
            own = weight[label] * -math.log(prob[label])
            spread = sum(weight[j] * -math.log(prob[j]) for j in range(c)) / c
            nll += pixel_weight[i][k] * ((1 - smoothing) * own + smoothing * spread)
            share += pixel_weight[i][k] * weight[label]
            for j in range(c):
                sums[i][j][0] += prob[j] * (label == j)
                sums[i][j][1] += prob[j]
                sums[i][j][2] += label == j
    scores = [[(2 * a + smooth) / (p + t + smooth) for a, p, t in image] for image in sums]
    expected = nll / share + sum(1 - score for image in scores for score in image) / (n * c)
    loss = segops.dice_ce_loss(
        logits,
        target,
        weight=torch.tensor(weight, device=device),
        pixel_weight=torch.tensor(pixel_weight, device=device),
        label_smoothing=smoothing,
        smooth=smooth,
        backend=backend,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-13)


def test_textbook_dice_with_batch_and_no_smooth(backend: str, device: str) -> None:
    """L = 1 - 1/C sum_c 2 sum t y / sum (t + y)."""
    logits, target = make_logits((2, 4, 6, 5), torch.float64, device=device), random_labels((2, 6, 5), 4, device=device)
    y = logits.softmax(1)
    t = F.one_hot(target, 4).movedim(-1, 1)
    expected = 1 - (2 * (t * y).sum((0, 2, 3)) / (t + y).sum((0, 2, 3))).mean()
    loss = segops.dice_ce_loss(logits, target, ce_weight=0, smooth=0, batch_dice=True, backend=backend)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 33), (2, 4, 6, 11), (2, 4, 3, 5, 7)])
def test_gradient_keeps_the_memory_format(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: str
) -> None:
    target = random_labels(pixels(shape), 4, device=device)
    for layout in ("contiguous", "channels_last"):
        logits = make_logits(shape, dtype, layout, device=device).requires_grad_()
        loss = segops.dice_ce_loss(logits, target, backend=backend)
        (gradient,) = torch.autograd.grad(loss, logits)
        if backend != "reference":
            assert gradient.stride() == logits.stride()
        # And so does what the optimiser sees.
        segops.dice_ce_loss(logits, target, backend=backend).backward()
        assert logits.grad.stride() == logits.stride()


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
def test_target_and_weights_in_any_layout(label_dtype: torch.dtype, backend: str, device: str) -> None:
    logits = make_logits((2, 3, 6, 10), device=device)
    wide = random_labels((4, 12, 21), 3, label_dtype, device=device)
    weights = torch.rand(4, 12, 21, device=device)
    class_weight = torch.rand(7, device=device)[1::2]
    for view in (
        lambda t: t[::2, ::2, 1::2],
        lambda t: t[1:2, :6, 3:13].expand(2, 6, 10),
        lambda t: t[2:, :10, :6].transpose(1, 2),
        lambda t: t[:2, 3:9, :1].expand(2, 6, 10),
    ):
        arguments = {"weight": class_weight, "dice_class_weight": class_weight, "pixel_weight": view(weights)}
        loss = segops.dice_ce_loss(logits, view(wide), backend=backend, **arguments)
        same = segops.dice_ce_loss(
            logits, view(wide).contiguous(), backend=backend, **{k: v.contiguous() for k, v in arguments.items()}
        )
        assert torch.equal(loss, same)
        check(logits, view(wide), backend, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_any_floating_dtype(dtype: torch.dtype, backend: str, device: str) -> None:
    logits, target = make_logits((2, 3, 6, 5), device=device), random_labels((2, 6, 5), 3, device=device)
    weights = {"weight": torch.tensor([0.5, 1.0, 2.0]), "dice_class_weight": torch.tensor([1.0, 0.25, 3.0])}
    weights = {k: v.to(device, dtype) for k, v in weights.items()}
    weights["pixel_weight"] = (torch.randint(0, 8, (2, 6, 5), device=device) / 4).to(dtype)
    check(logits, target, backend, weights)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"squared": True}, {"overlap": "jaccard"}, {"smooth": 0.0}, {"ce_weight": 0.0}]
)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_parts(dtype: torch.dtype, options: dict[str, Any], batch_dice: bool, backend: str, device: str) -> None:
    logits = make_logits((2, 4, 8, 9), dtype, device=device).requires_grad_()
    target = random_labels((2, 8, 9), 4, ignore_index=-100, device=device)
    options = {**options, "batch_dice": batch_dice}
    loss, parts = segops.dice_ce_loss(logits, target, return_parts=True, backend=backend, **options)
    assert torch.equal(loss, segops.dice_ce_loss(logits, target, backend=backend, **options))
    for part in parts:
        assert not part.requires_grad
    assert [p.dtype for p in parts] == [dtype, dtype, dtype, torch.int64]

    def scores_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coefficients = {"dice": (2, 0, 1, 1), "jaccard": (1, -1, 1, 1)}[options.get("overlap", "dice")]
        mean, scores = reference.dice(
            reference.overlap_sums(x, target, -100, options.get("squared", False)),
            coefficients=coefficients,
            smooth=options.get("smooth", 1e-5),
            batch_dice=batch_dice,
            include_background=True,
            skip_absent=False,
            dice_class_weight=None,
        )
        return F.cross_entropy(x, target), mean, scores

    x = logits.detach()
    accumulated = scores_of(x.float()) if dtype.itemsize == 2 else (None,) * 3
    for name, actual, truth, own, single in zip(
        ("ce", "dice", "scores"), parts, scores_of(x.double()), scores_of(x), accumulated, strict=False
    ):
        assert_near(actual, truth, own, single, scale=1.0, what=name)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for label, guess in zip(target.flatten().tolist(), x.argmax(1).flatten().tolist(), strict=True):
        if label >= 0:
            expected[label, guess] += 1
    assert torch.equal(parts.confusion.cpu(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_confusion_of_ties_and_nan_is_that_of_torch_argmax(
    dtype: torch.dtype, layout: str, backend: str, device: str
) -> None:
    """Small integer logits tie everywhere; NaN counts as the largest value, infinities and -0.0 as themselves."""
    shape = (2, 6, 13, 17)
    logits = make_logits(shape, dtype, layout, scale=1.5, device=device)
    logits.copy_(logits.round())
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0], dtype=dtype, device=device)
    where = torch.rand(shape) < 0.2
    logits[where] = special[torch.randint(0, 5, (int(where.sum()),))]
    target = random_labels(pixels(shape), 6, ignore_index=255, device=device)
    _, parts = segops.dice_ce_loss(logits, target, ignore_index=255, return_parts=True, validate="off", backend=backend)
    valid = target != 255
    expected = torch.bincount(target[valid] * 6 + logits.argmax(1)[valid], minlength=36).view(6, 6)
    assert torch.equal(parts.confusion, expected)


@pytest.mark.parametrize("classes", [1, 2, 19, 300])
def test_confusion_counts_every_pixel(classes: int, backend: str, device: str) -> None:
    logits = make_logits((3, classes, 57, 43), device=device)
    target = random_labels((3, 57, 43), classes, device=device)
    _, parts = segops.dice_ce_loss(logits, target, return_parts=True, backend=backend)
    expected = torch.bincount((target * classes + logits.argmax(1)).flatten(), minlength=classes**2)
    assert torch.equal(parts.confusion.flatten(), expected)


def test_inputs_are_left_as_they_were(backend: str, device: str) -> None:
    logits, target = make_logits((2, 3, 9, 9), device=device), random_labels((2, 9, 9), 3, device=device)
    arguments = fill({"weight": "per class", "pixel_weight": "per pixel", "dice_class_weight": "per class"}, logits)
    before = [t.clone() for t in (logits, target, *arguments.values())]
    x = logits.requires_grad_()
    segops.dice_ce_loss(x, target, return_parts=True, backend=backend, **arguments)[0].backward()
    for old, new in zip(before, (logits.detach(), target, *arguments.values()), strict=True):
        assert torch.equal(old, new)
        assert new._version == 0


def test_gradients_accumulate_and_scale(backend: str, device: str) -> None:
    logits, target = make_logits((2, 3, 9, 9), torch.float64, device=device), random_labels((2, 9, 9), 3, device=device)
    x = logits.clone().requires_grad_()
    loss = segops.dice_ce_loss(x, target, backend=backend)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(65536 * loss, x, retain_graph=True)
    assert torch.allclose(scaled, 65536 * once, rtol=1e-14, atol=0)
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.allclose(x.grad, 2 * once, rtol=1e-14, atol=0)
    with torch.no_grad():
        assert not segops.dice_ce_loss(x, target, backend=backend).requires_grad
    with torch.inference_mode():
        assert torch.equal(segops.dice_ce_loss(logits, target, backend=backend), loss.detach())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 19, 150])
def test_number_of_threads_changes_nothing(classes: int, layout: str) -> None:
    """Several items of work an image, the last of them shorter."""
    target = random_labels((2, 131, 97), classes, ignore_index=-100)

    def run() -> tuple[Tensor, ...]:
        x = make_logits((2, classes, 131, 97), torch.bfloat16, layout).requires_grad_()
        loss, parts = segops.dice_ce_loss(x, target, return_parts=True, backend="native")
        pixels_of = segops.dice_ce_loss(x, target, reduction="none", dice_weight=0, backend="native")
        (gradient,) = torch.autograd.grad(loss + pixels_of.sum(), x)
        return loss.detach(), *parts, pixels_of.detach(), gradient

    assert_threads_change_nothing(run, 1, 2, 3)
