"""dice_bce_loss of coarse logits: that of their interpolation, exact in float64, which is never in memory."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from benchmarks.memory import peak_allocated
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.ops.dice_bce_loss_eager import LABEL_DTYPES, OPTIONS, check, eager, fill, make_target
from tests.ops.dice_ce_loss_coarse_cases import SIZES, SMALLER

LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CORNERS = pytest.mark.parametrize("align_corners", [False, True])


@CORNERS
@pytest.mark.parametrize("name", SIZES)
def test_equals_interpolation_and_loss(name: str, align_corners: bool, backend: str, device: str) -> None:
    """In float64, where what is left is the order of additions."""
    small = backend == "triton" and device == "cpu"
    shape, size = SMALLER.get(name, SIZES[name]) if small else SIZES[name]
    target = make_target((*shape[:2], *size), torch.float32, 255, device=device)
    options = fill({"pixel_weight": "per pixel", "pos_weight": "per channel"}, target)
    options |= {"align_corners": align_corners, "ignore_index": 255}
    ours = make_logits(shape, torch.float64, device=device).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = segops.dice_bce_loss(ours, target, backend=backend, **options)
    expected = eager(theirs, target, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    loss.backward()
    expected.backward()
    scale = theirs.grad.abs().max().item()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-13 * scale)


@pytest.mark.parametrize("layout", LAYOUTS + VIEWS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype, layout: str, kernel_backend: str, device: str) -> None:
    logits = make_logits((2, 3, 5, 7), dtype, layout, device=device)
    check(logits, make_target((2, 3, 13, 17), device=device), kernel_backend)


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
def test_labels_in_any_layout(label_dtype: torch.dtype, backend: str, device: str) -> None:
    logits = make_logits((2, 3, 4, 5), device=device)
    wide = make_target((2, 3, 24, 31), label_dtype, device=device)
    channels_last = wide.movedim(1, -1).contiguous().movedim(-1, 1)
    for target in (wide[:, :, ::2, 1::2], channels_last, wide[:1].expand(2, 3, 24, 31)):
        loss = segops.dice_bce_loss(logits, target, backend=backend)
        torch.testing.assert_close(loss, segops.dice_bce_loss(logits, target.contiguous(), backend=backend))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(options: dict[str, Any], backend: str, device: str) -> None:
    target = make_target((2, 4, 11, 13), torch.float32, options.get("ignore_index"), device=device)
    scale = float(target.numel()) if options.get("reduction") == "sum" else 1.0
    check(make_logits((2, 4, 4, 6), device=device), target, backend, options, value_scale=scale)


@CORNERS
@pytest.mark.parametrize("name", ["default", "everything", "focal 0.5"])
def test_gradcheck(name: str, align_corners: bool, backend: str, device: str) -> None:
    logits = make_logits((1, 2, 2, 2), torch.float64, scale=1.0, device=device).requires_grad_()
    options = OPTIONS[name]
    target = make_target((1, 2, 5, 4), torch.float32, options.get("ignore_index"), device=device)
    loss = functools.partial(
        segops.dice_bce_loss, target=target, align_corners=align_corners, backend=backend, **fill(options, target)
    )
    assert torch.autograd.gradcheck(loss, logits)


@CORNERS
def test_map(align_corners: bool, backend: str, device: str) -> None:
    logits, target = make_logits((2, 3, 4, 5), device=device), make_target((2, 3, 9, 150), torch.float32, device=device)
    options = {"reduction": "none", "dice_weight": 0.0, "align_corners": align_corners, "pixel_weight": "per pixel"}
    check(logits, target, backend, options, upstream=torch.randn(target.shape, device=device), value_scale=10.0)


def test_binary_maps_without_channels(backend: str, device: str) -> None:
    logits, target = make_logits((2, 4, 5), device=device), make_target((2, 9, 12), torch.bool, device=device)
    loss = segops.dice_bce_loss(logits, target, backend=backend)
    assert torch.equal(loss, segops.dice_bce_loss(logits[:, None], target[:, None], backend=backend))
    check(logits, target, backend)


def test_one_dimension_finer_than_the_target(backend: str, device: str) -> None:
    """Interpolated in memory."""
    check(make_logits((2, 3, 12, 5), device=device), make_target((2, 3, 7, 11), device=device), backend)


def test_nan_in_the_gradient_stays_where_it_is_read(backend: str, device: str) -> None:
    logits = make_logits((2, 2, 9, 12), torch.float64, device=device)
    logits[1, 1, 4, 6] = float("nan")
    target = make_target((2, 2, 31, 41), device=device)
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    segops.dice_bce_loss(x, target, dice_weight=0.0, backend=backend).backward()
    eager(y, target, dice_weight=0.0).backward()
    assert torch.equal(x.grad.isnan(), y.grad.isnan())
    assert x.grad.isnan().any()


def test_bad_labels_are_reported_in_the_order_of_the_target(backend: str, device: str) -> None:
    width = 60 if backend == "triton" and device == "cpu" else 700
    logits, target = make_logits((2, 3, 3, 4), device=device), make_target((2, 3, 40, width), device=device)
    target[1, 2, 30, 0], target[1, 2, 20, width - 1], target[1, 2, 39, 5] = 9, 8, 7

    def checked() -> None:
        segops.dice_bce_loss(logits, target, ignore_index=255, backend=backend)
        segops.check_errors()  # which a device's labels wait for

    words = f"3 labels outside {{0, 1}} that are not ignore_index (255); the first is 8 at [1, 2, 20, {width - 1}]"
    with pytest.raises(ValueError, match=re.escape(words) if device == "cpu" else "3 labels outside"):
        checked()


@pytest.mark.parametrize("channels", [1, 4])
def test_interpolated_logits_are_never_in_memory(channels: int) -> None:
    x = make_logits((2, channels, 64, 64)).requires_grad_()
    target = make_target((2, channels, 512, 512))

    def step() -> Tensor:
        return torch.autograd.grad(segops.dice_bce_loss(x, target, backend="native"), x)[0]

    step()
    assert peak_allocated(step) < x.nbytes + (64 << 10)
