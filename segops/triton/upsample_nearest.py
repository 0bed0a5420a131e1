"""upsample_nearest2d and bed_of_nails2d in Triton: gathers, forward and backward.

A program owns a tile of a result that is dense in memory: rows of a plane, or of an image where channels are last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from segops._layout import empty_image
from segops.triton._runtime import INTERPRETING, computing_dtype, launch
from segops.triton.numeric import narrow, widen
from segops.triton.tiles import cut, tile_of_program

_NEAREST, _SPREAD, _PICKED = 0, 1, 2


@triton.jit
def _nearest_source(i, extent, out, step):
    """segops/upsample_nearest.h has the formula."""
    scaled = tl.minimum(i.to(tl.float32) * step, extent.to(tl.float32)).to(tl.int32)
    source = tl.minimum(scaled, extent - 1)
    return tl.where(out == extent, i, tl.where(out == 2 * extent, i >> 1, source))


@triton.jit
def _source(i, extent, out, step, scale, KIND: tl.constexpr):
    """The input that output i is, or -1."""
    if KIND == 0:
        return _nearest_source(i, extent, out, step)
    elif KIND == 1:
        return tl.where(i % scale == 0, i // scale, -1)
    else:
        return i * scale


@triton.jit
def _first_output(source, extent, out, step, steps):
    """The first output that is input `source` or a later one: a binary search, as sources never go down."""
    low = tl.zeros_like(source)
    high = low + out
    for _ in range(steps):
        middle = (low + high) // 2
        below = (low < high) & (_nearest_source(middle, extent, out, step) < source)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    return low


@triton.jit(do_not_specialize=["step_h", "step_w", "scale"])
def upsample_nearest_kernel(
    input,  # [N, C, h, w] by strides
    output,  # [N, C, H, W], dense
    channels,
    in_height,
    in_width,
    height,
    width,
    stride,
    step_h,
    step_w,
    scale,
    KIND: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n, y, at, c, x, begin, inside = tile_of_program(height, width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    from_y = _source(y, in_height.to(tl.int32), height, step_h, scale, KIND)
    from_x = _source(x, in_width.to(tl.int32), width, step_w, scale, KIND)
    there = inside & (from_y >= 0)[:, None] & (from_x >= 0)[None, :]
    rows = input + n.to(tl.int64) * stride[0] + from_y.to(tl.int64) * stride[2]
    columns = from_x.to(tl.int64) * stride[3] + c.to(tl.int64) * stride[1]
    value = tl.load(rows[:, None] + columns[None, :], mask=there, other=0.0)
    tl.store((output + begin)[:, None] + at[None, :], value, mask=inside)


@triton.jit(do_not_specialize=["step_h", "step_w", "steps"])
def upsample_nearest_backward_kernel(
    grad_output,  # [N, C, H, W] by strides
    grad_input,  # [N, C, h, w], dense
    channels,
    height,
    width,
    out_height,
    out_width,
    stride,
    step_h,
    step_w,
    steps,  # of a binary search among the outputs
    T: tl.constexpr,
    INTERPRETING: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    row = width * channels if ACROSS else width
    n, y, at, c, x, begin, inside = tile_of_program(height, width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    first_y = _first_output(y, height.to(tl.int32), out_height, step_h, steps)
    first_x = _first_output(x, width.to(tl.int32), out_width, step_w, steps)
    rows = tl.where(y < height, _first_output(y + 1, height.to(tl.int32), out_height, step_h, steps) - first_y, 0)
    columns = tl.where(at < row, _first_output(x + 1, width.to(tl.int32), out_width, step_w, steps) - first_x, 0)
    plane = grad_output + n.to(tl.int64) * stride[0]
    total = tl.zeros((BLOCK_Y, BLOCK_X), T)
    for r in range(tl.max(rows)):
        fine = plane + (first_y + r).to(tl.int64) * stride[2]
        for k in range(tl.max(columns)):
            there = (r < rows)[:, None] & (k < columns)[None, :]
            offsets = (first_x + k).to(tl.int64) * stride[3] + c.to(tl.int64) * stride[1]
            total += widen(tl.load(fine[:, None] + offsets[None, :], mask=there, other=0.0), T)
    value = narrow(total, grad_input.dtype.element_ty, INTERPRETING)
    tl.store((grad_input + begin)[:, None] + at[None, :], value, mask=inside)


def _launch(kernel: Any, x: Tensor, height: int, width: int, *args: Any, **options: Any) -> Tensor:
    """A new image [N, C, height, width] in the memory format of x, made by a kernel with a program for each tile."""
    if min(height, width, *x.shape[2:]) < 1:
        raise RuntimeError(f"segops: images must have pixels, got {list(x.shape)} to {[height, width]}")
    result = empty_image(x, x.shape[1], height, width)
    programs, blocks = cut(result, height, width, not result.is_contiguous())
    sizes = (*x.shape[2:], height, width) if kernel is upsample_nearest_kernel else (height, width, *x.shape[2:])
    launch(kernel, programs, x, x, result, x.shape[1], *sizes, x.stride(), *args, **options, **blocks)
    return result


def _step(extent: int, out: int, scale: float) -> float:
    return float(np.float32(1.0 / scale) if scale > 0 else np.float32(extent) / np.float32(out))


def upsample_nearest2d(input: Tensor, height: int, width: int, scale_h: float, scale_w: float) -> Tensor:
    steps = _step(input.shape[2], height, scale_h), _step(input.shape[3], width, scale_w)
    return _launch(upsample_nearest_kernel, input, height, width, *steps, 1, KIND=_NEAREST)


def upsample_nearest2d_backward(grad_output: Tensor, height: int, width: int, scale_h: float, scale_w: float) -> Tensor:
    out_height, out_width = grad_output.shape[2:]
    return _launch(
        upsample_nearest_backward_kernel,
        grad_output,
        height,
        width,
        _step(height, out_height, scale_h),
        _step(width, out_width, scale_w),
        max(out_height, out_width).bit_length(),
        T=computing_dtype(grad_output),
        INTERPRETING=INTERPRETING,
    )


def bed_of_nails2d(input: Tensor, scale: int) -> Tensor:
    if scale < 1:
        raise RuntimeError(f"segops.bed_of_nails2d: scale must be at least 1, got {scale}")
    height, width = input.shape[2] * scale, input.shape[3] * scale
    return _launch(upsample_nearest_kernel, input, height, width, 1.0, 1.0, scale, KIND=_SPREAD)


def bed_of_nails2d_backward(grad_output: Tensor, scale: int) -> Tensor:
    height, width = grad_output.shape[2] // scale, grad_output.shape[3] // scale
    if (height * scale, width * scale) != tuple(grad_output.shape[2:]):
        raise RuntimeError(f"segops.bed_of_nails2d: {list(grad_output.shape)} is not a multiple of {scale}")
    return _launch(upsample_nearest_kernel, grad_output, height, width, 1.0, 1.0, scale, KIND=_PICKED)
