"""Kernels of max_unpool2d with torch's flat indices, which may point anywhere in their plane of the output."""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.max_unpool_record import note_bad
from segops.triton.max_unpool_windows import offsets, strided
from segops.triton.numeric import narrow, widen
from segops.triton.tiles import tile_of_program


@triton.jit
def max_unpool_flat_mark_kernel(
    indices,  # int64 [N, C, h, w] by strides
    latest,  # int32 [N, C, H, W], dense, zeroed; or None
    seen,
    channels,
    in_height,
    in_width,
    pixels,  # H * W
    index_stride,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """To `latest` the last of the windows that point at each output, counted from 1. Looks for bad indices, too."""
    n, y, _, c, x, _, there = tile_of_program(in_height, in_width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    index = tl.load(strided(indices, n, c, index_stride) + offsets(y, x, index_stride), mask=there, other=0)
    good = (index >= 0) & (index < pixels)
    note_bad(seen, there & (good == 0), n, c, y, x, channels, in_height, in_width)
    if latest is not None:
        if ACROSS:
            to = (n.to(tl.int64) * pixels + index) * channels + c[None, :]
        else:
            to = (n * channels + c).to(tl.int64)[None, :] * pixels + index
        number = y[:, None] * in_width + x[None, :] + 1
        tl.atomic_max(latest + to, number, mask=there & good, sem="relaxed")


@triton.jit
def max_unpool_flat_kernel(
    input,  # [N, C, h, w] by strides
    latest,  # int32 [N, C, H, W], dense
    output,  # the same
    channels,
    height,
    width,
    in_width,
    stride,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n, _, at, c, _, begin, inside = tile_of_program(height, width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    to = begin[:, None] + at[None, :]
    window = tl.load(latest + to, mask=inside, other=0) - 1
    value = tl.load(strided(input, n, c, stride) + _of_window(window, in_width, stride), mask=window >= 0, other=0)
    tl.store(output + to, value, mask=inside)


@triton.jit
def _of_window(window, in_width, stride):
    return (window // in_width).to(tl.int64) * stride[2] + (window % in_width).to(tl.int64) * stride[3]


@triton.jit
def _lower_bound(keys, key, length, steps):
    """How many of the sorted `keys` are less than `key`."""
    low = tl.zeros_like(key)
    high = low + length
    for _ in range(steps):
        middle = (low + high) // 2
        less = (low < high) & (tl.load(keys + middle, mask=low < high, other=0) < key)
        high = tl.where(less, high, middle)
        low = tl.where(less, middle + 1, low)
    return low


@triton.jit(do_not_specialize=["steps"])
def max_unpool_flat_sum_kernel(
    input,  # [N, C, h, w] by strides
    keys,  # int64 [N, C, h * w]: indices of each plane, sorted
    order,  # int64, the same: whose they are; equal ones in row-major order
    output,  # [N, C, H, W], dense
    channels,
    height,
    width,
    in_width,
    windows,  # h * w
    steps,  # of a binary search among them
    stride,
    T: tl.constexpr,
    INTERPRETING: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """The sum of all windows that point at an output, in row-major order."""
    n, y, at, c, x, begin, inside = tile_of_program(height, width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    plane = (n * channels + c).to(tl.int64)[None, :] * windows
    # Beyond the image no key is found.
    pixel = tl.where(inside, y[:, None] * width + x[None, :], -2)
    first = _lower_bound(keys + plane, pixel, windows, steps)
    run = _lower_bound(keys + plane, pixel + 1, windows, steps) - first
    image = strided(input, n, c, stride)
    total = tl.zeros((BLOCK_Y, BLOCK_X), T)
    for k in range(tl.max(run)):
        window = tl.load(order + plane + first + k, mask=k < run, other=0).to(tl.int32)
        total += widen(tl.load(image + _of_window(window, in_width, stride), mask=k < run, other=0.0), T)
    value = narrow(total, output.dtype.element_ty, INTERPRETING)
    tl.store(output + begin[:, None] + at[None, :], value, mask=inside)


@triton.jit
def max_unpool_flat_backward_kernel(
    grad_output,  # [N, C, H, W] by strides
    indices,  # int64 [N, C, h, w] by strides
    grad_input,  # [N, C, h, w], dense
    channels,
    in_height,
    in_width,
    pixels,  # H * W
    width,
    stride,
    index_stride,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n, y, at, c, x, begin, inside = tile_of_program(in_height, in_width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    index = tl.load(strided(indices, n, c, index_stride) + offsets(y, x, index_stride), mask=inside, other=-1)
    good = (index >= 0) & (index < pixels)
    # A plane has less than 2^31 pixels, and a division of 64 bits is a subroutine.
    pixel = tl.where(good, index, 0).to(tl.int32)
    value = tl.load(strided(grad_output, n, c, stride) + _of_window(pixel, width, stride), mask=good, other=0)
    tl.store(grad_input + begin[:, None] + at[None, :], value, mask=inside)
