"""dice_ce_loss of coarse logits: the loss of their interpolation, on every backend."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from benchmarks.memory import peak_allocated
from segops.reference.dice_ce_loss import interpolated
from tests.cases import LAYOUTS, VIEWS, make_logits, random_labels
from tests.cpu import assert_threads_change_nothing
from tests.ops.dice_ce_loss_coarse_cases import SIZES, SMALLER, check, coarse_eager
from tests.ops.dice_ce_loss_eager import OPTIONS
from tests.tolerances import assert_near, compare

LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CORNERS = pytest.mark.parametrize("align_corners", [False, True], ids=["centers", "corners"])


@CORNERS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_sizes(
    name: str, dtype: torch.dtype, layout: str, align_corners: bool, kernel_backend: str, device: str
) -> None:
    shape, size = SMALLER.get(name, SIZES[name]) if kernel_backend == "triton" and device == "cpu" else SIZES[name]
    target = random_labels((shape[0], *size), shape[1], ignore_index=-100, device=device)
    target[0, 0, 0] = 0
    check(
        make_logits(shape, dtype, layout, device=device),
        target,
        kernel_backend,
        {"align_corners": align_corners},
        gradient_scale=1 / (shape[2] * shape[3]),
    )


@CORNERS
@pytest.mark.parametrize("layout", LAYOUTS + VIEWS)
def test_layouts(layout: str, align_corners: bool, kernel_backend: str, device: str) -> None:
    logits = make_logits((2, 5, 7, 9), torch.float32, layout, device=device)
    target = random_labels((2, 23, 20), 5, torch.uint8, 255, device=device)
    check(logits, target, kernel_backend, {"align_corners": align_corners, "ignore_index": 255})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(options: dict[str, Any], dtype: torch.dtype, backend: str, device: str) -> None:
    target = random_labels((3, 11, 13), 4, ignore_index=options.get("ignore_index"), device=device)
    target[1][target[1] == 3] = 0  # an absent class
    scale = float(target.numel()) if options.get("reduction") == "sum" else 1.0
    check(make_logits((3, 4, 4, 5), dtype, device=device), target, backend, options, value_scale=scale)


@CORNERS
@pytest.mark.parametrize("options", [{}, {"dice_weight": 0.0}, OPTIONS["everything"]], ids=["both", "ce", "everything"])
def test_gradcheck(options: dict[str, Any], align_corners: bool, backend: str, device: str) -> None:
    # Two calls for each logit, in the interpreter of few.
    (h, w), size = ((1, 2), (3, 5)) if backend == "triton" and device == "cpu" else ((2, 3), (5, 7))
    logits = make_logits((2, 3, h, w), torch.float64, scale=1.0, device=device).requires_grad_()
    target = random_labels((2, *size), 3, ignore_index=options.get("ignore_index"), device=device)
    options = {name: value for name, value in options.items() if not isinstance(value, str) or "per" not in value}
    torch.autograd.gradcheck(
        lambda x: segops.dice_ce_loss(x, target, align_corners=align_corners, backend=backend, **options), logits
    )


@CORNERS
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_map_and_its_gradient(dtype: torch.dtype, align_corners: bool, backend: str, device: str) -> None:
    logits, target = make_logits((2, 4, 5, 6), dtype, device=device), random_labels((2, 12, 13), 4, device=device)
    upstream = (torch.randint(-8, 9, target.shape) / 8).to(device)
    options: dict[str, Any] = {"reduction": "none", "dice_weight": 0.0, "align_corners": align_corners}
    compare(
        lambda x: segops.dice_ce_loss(x, target, backend=backend, **options),
        lambda x: coarse_eager(x, target, **options),
        logits,
        upstream=upstream,
        value_scale=10.0,
    )
    assert segops.dice_ce_loss(logits, target, backend=backend, **options).shape == target.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_parts_are_those_of_the_interpolated_logits(dtype: torch.dtype, backend: str, device: str) -> None:
    logits, target = make_logits((2, 4, 6, 7), dtype, device=device), random_labels((2, 13, 25), 4, device=device)
    fine = interpolated(logits.double(), target.shape[1:], False)
    loss, parts = segops.dice_ce_loss(logits, target, return_parts=True, backend=backend)
    expected_loss, expected = segops.dice_ce_loss(fine, target, return_parts=True, backend="reference")
    tolerance = 1e-12 if dtype == torch.float64 else 1e-3
    for ours, theirs in zip((loss, *parts[:3]), (expected_loss, *expected[:3]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(parts.confusion, expected.confusion)


@pytest.mark.parametrize("size", [(5, 9), (9, 4), (4, 4), (3, 30), (12, 1)], ids=str)
@CORNERS
def test_finer_than_the_target_is_interpolated_in_memory(
    size: tuple[int, int], align_corners: bool, backend: str, device: str
) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        logits = make_logits((2, 3, 8, 8), dtype, device=device)
        check(logits, random_labels((2, *size), 3, device=device), backend, {"align_corners": align_corners})


def test_equal_size_is_not_interpolated(backend: str, device: str) -> None:
    logits, target = make_logits((2, 3, 8, 9), device=device), random_labels((2, 8, 9), 3, device=device)
    expected = segops.dice_ce_loss(logits, target, backend=backend)
    assert torch.equal(segops.dice_ce_loss(logits, target, align_corners=True, backend=backend), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@CORNERS
def test_special_logits_reach_the_pixels_that_read_them(
    value: float, align_corners: bool, backend: str, device: str
) -> None:
    """One special logit, away from weights of exactly zero, whose product with infinity depends on the formula."""
    logits = make_logits((2, 3, 6, 7), torch.float64, device=device)
    logits[1, 2, 3, 4] = value
    target = random_labels((2, 17, 19), 3, device=device)
    options: dict[str, Any] = {"reduction": "none", "dice_weight": 0.0, "align_corners": align_corners}
    ours = segops.dice_ce_loss(logits, target, backend=backend, **options)
    theirs = coarse_eager(logits, target, **options)
    assert_near(ours, theirs, theirs, scale=10.0, what="map")
    assert not ours[1].isfinite().all()
    assert ours[0].isfinite().all()


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_nan_in_the_gradient_stays_where_it_is_read(dice_weight: float, backend: str, device: str) -> None:
    (h, w), size = ((5, 12), (17, 41)) if backend == "triton" and device == "cpu" else ((9, 40), (31, 133))
    logits = make_logits((2, 3, h, w), torch.float64, device=device)
    logits[1, 2, h // 2, w // 2] = float("nan")
    target = random_labels((2, *size), 3, device=device)
    x = logits.clone().requires_grad_()
    segops.dice_ce_loss(x, target, dice_weight=dice_weight, backend=backend).backward()
    y = logits.clone().requires_grad_()
    coarse_eager(y, target, dice_weight=dice_weight).backward()
    assert torch.equal(x.grad.isnan(), y.grad.isnan())
    assert x.grad.isnan().any()
    assert not x.grad[0].isnan().any()


def test_garbage_at_ignored_pixels(backend: str, device: str) -> None:
    """A logit that only ignored pixels read counts nowhere, and gets no gradient."""
    logits = make_logits((1, 3, 6, 6), torch.float64, device=device)
    target = random_labels((1, 24, 24), 3, device=device)
    target[:, 8:20, 8:20] = -100
    expected = logits.clone().requires_grad_()
    segops.dice_ce_loss(expected, target, backend=backend).backward()
    for garbage in (float("nan"), float("inf"), 1e300):
        x = logits.clone()
        x[0, 1, 3, 3] = garbage
        x.requires_grad_()
        segops.dice_ce_loss(x, target, backend=backend).backward()
        torch.testing.assert_close(x.grad, expected.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_large_logits(scale: float, backend: str, device: str) -> None:
    logits = make_logits((2, 5, 7, 9), scale=scale, device=device)
    check(logits, random_labels((2, 21, 18), 5, device=device), backend, value_scale=scale)


def test_everything_ignored(backend: str, device: str) -> None:
    logits = make_logits((2, 3, 4, 5), device=device).requires_grad_()
    target = torch.full((2, 9, 10), 255, dtype=torch.uint8, device=device)
    loss = segops.dice_ce_loss(logits, target, ignore_index=255, dice_weight=0.0, backend=backend)
    assert loss.isnan()
    segops.dice_ce_loss(logits, target, ignore_index=255, ce_weight=0.0, backend=backend).backward()
    assert not logits.grad.any()


def test_empty_batch(backend: str, device: str) -> None:
    logits = torch.zeros(0, 3, 4, 5, device=device, requires_grad=True)
    target = torch.zeros(0, 8, 10, dtype=torch.int64, device=device)
    loss = segops.dice_ce_loss(logits, target, reduction="sum", dice_weight=0.0, backend=backend)
    loss.backward()
    assert loss == 0
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("width", [9, 500])
def test_bad_labels_are_reported_in_the_order_of_the_target(width: int, backend: str, device: str) -> None:
    logits, target = make_logits((2, 3, 3, 4), device=device), random_labels((2, 40, width), 3, device=device)
    target[1, 30, 0], target[1, 20, width - 1], target[1, 39, 5] = 9, 8, 7
    words = re.escape("target has 3 labels outside [0, 3) that are not ignore_index (-100); the first is 8 at [1, 20, ")

    def checked() -> None:
        segops.dice_ce_loss(logits, target, backend=backend)
        segops.check_errors()  # which a device's labels wait for

    if device == "cpu":
        with pytest.raises(ValueError, match=words):
            checked()
    else:
        with pytest.raises(ValueError, match="3 labels outside"):
            checked()
    segops.take_bad_data_count()
    loss = segops.dice_ce_loss(logits, target, validate="count", backend=backend)
    assert segops.take_bad_data_count() == 3
    ignored = torch.where(target > 2, -100, target)
    assert torch.equal(loss, segops.dice_ce_loss(logits, ignored, backend=backend))


@pytest.mark.parametrize(
    ("logits", "target", "words"),
    [
        ((2, 3, 4), (2, 8), "target must be [2, 4] for logits [2, 3, 4], got [2, 8] (coarse logits must be"),
        ((2, 3, 4, 4, 4), (2, 8, 8, 8), "target must be [2, 4, 4, 4] for logits [2, 3, 4, 4, 4], got [2, 8, 8, 8]"),
        ((2, 3, 4, 4), (1, 8, 8), "target must be [2, 4, 4] for logits [2, 3, 4, 4], got [1, 8, 8]"),
        ((2, 3, 4, 4), (2, 1, 8, 8), "target must be [2, 4, 4] for logits [2, 3, 4, 4], got [2, 1, 8, 8]"),
        ((2, 3, 0, 4), (2, 8, 8), "logits must have at least one pixel to be interpolated, got [2, 3, 0, 4]"),
        ((2, 3, 4, 4), (2, 8, 0), "target must have at least one pixel to be interpolated, got [2, 8, 0]"),
    ],
    ids=["1-D", "3-D", "batch", "extra dimension", "no logits", "no target"],
)
def test_bad_shapes(logits: tuple[int, ...], target: tuple[int, ...], words: str, backend: str, device: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"segops.dice_ce_loss: {words}")):
        segops.dice_ce_loss(
            torch.zeros(logits, device=device), torch.zeros(target, dtype=torch.int64, device=device), backend=backend
        )


def test_bad_options(backend: str, device: str) -> None:
    logits = torch.zeros(2, 3, 4, 4, device=device)
    target = torch.zeros(2, 8, 8, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=re.escape("pixel_weight must be [2, 8, 8], got [2, 4, 4]")):
        segops.dice_ce_loss(logits, target, pixel_weight=torch.ones(2, 4, 4, device=device), backend=backend)
    with pytest.raises(TypeError, match="align_corners must be a bool, got int"):
        segops.dice_ce_loss(logits, target, align_corners=1, backend=backend)


@pytest.mark.parametrize(("shape", "size"), [((2, 5, 17, 19), (68, 150)), ((1, 3, 2, 3), (97, 401))])
def test_number_of_threads_changes_nothing(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    target = random_labels((shape[0], *size), shape[1])

    def run() -> tuple[Tensor, ...]:
        x = make_logits(shape).requires_grad_()
        loss, parts = segops.dice_ce_loss(x, target, return_parts=True, backend="native")
        return loss.detach(), *parts, *torch.autograd.grad(loss, x)

    assert_threads_change_nothing(run, 1, 2, 3)


def test_interpolated_logits_are_never_in_memory() -> None:
    logits, target = make_logits((1, 16, 64, 64)), random_labels((1, 512, 512), 16)
    x = logits.requires_grad_()

    def step() -> Tensor:
        return torch.autograd.grad(segops.dice_ce_loss(x, target, backend="native"), x)[0]

    step()
    assert peak_allocated(step) < logits.nbytes + (64 << 10)
