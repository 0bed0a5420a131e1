"""Kernels of max_pool2d and of max_unpool2d with window-local indices.

An axis of the windows is a constexpr (kernel, stride, padding, dilation), as segops/max_unpool.h has it. REACH is how
many windows reach one position at most, along each axis.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.max_unpool_record import note_bad
from segops.triton.numeric import narrow, widen
from segops.triton.tiles import tile_of_program

#: Loops over more taps or windows than this are loops; shorter ones are unrolled.
UNROLLED = tl.constexpr(16)


@triton.jit
def _first_tap(window, AXIS: tl.constexpr):
    """The first tap of a window that is inside the image; every window has one."""
    before = AXIS[2] - window * AXIS[1]
    return tl.where(before > 0, (before + AXIS[3] - 1) // AXIS[3], 0)


@triton.jit
def _window_at(position, i, windows, AXIS: tl.constexpr):
    """Of the windows that reach `position` the i-th from the last, or -1; and which of its taps does.

    With gaps between taps, that of tap i: a later tap is of an earlier window.
    """
    shifted = position + AXIS[2]
    if AXIS[3] == 1:
        window = shifted // AXIS[1] - i
        tap = shifted % AXIS[1] + i * AXIS[1]
        there = (window >= 0) & (window < windows) & (tap < AXIS[0])
    else:
        shifted -= i * AXIS[3]
        window = shifted // AXIS[1]
        tap = tl.zeros_like(position) + i
        there = (shifted >= 0) & (shifted % AXIS[1] == 0) & (window < windows)
    return tl.where(there, window, -1), tap


@triton.jit
def strided(data, n, c, stride):
    """Where channels c of image n begin, [1, C]."""
    return data + n.to(tl.int64) * stride[0] + (c.to(tl.int64) * stride[1])[None, :]


@triton.jit
def offsets(y, x, stride):
    return (y.to(tl.int64) * stride[2])[:, None] + (x.to(tl.int64) * stride[3])[None, :]


@triton.jit
def _better(best, index, value, tap):
    """The first maximum stands; a NaN is better than everything before it."""
    wins = (value > best) | (value != value)
    return tl.where(wins, value, best), tl.where(wins, tap, index)


@triton.jit
def _pool_tap(
    best,
    index,
    image,
    y,
    x,
    ky,
    kx,
    in_height,
    in_width,
    stride,
    inside,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
    LOWEST: tl.constexpr,
    WHOLE: tl.constexpr,
):
    from_y = y * VERTICAL[1] - VERTICAL[2] + ky * VERTICAL[3]
    from_x = x * HORIZONTAL[1] - HORIZONTAL[2] + kx * HORIZONTAL[3]
    there = inside
    if not WHOLE:
        there &= ((from_y >= 0) & (from_y < in_height))[:, None] & ((from_x >= 0) & (from_x < in_width))[None, :]
    value = tl.load(image + offsets(from_y, from_x, stride), mask=there, other=LOWEST)
    return _better(best, index, widen(value, best.dtype), ky * HORIZONTAL[0] + kx)


@triton.jit
def max_pool_kernel(
    input,  # [N, C, H, W] by strides
    output,  # [N, C, h, w], dense
    indices,  # uint8, like output
    channels,
    height,
    width,
    in_height,
    in_width,
    stride,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
    WHOLE: tl.constexpr,  # every tap is inside the image
    PAIRS: tl.constexpr,  # and neighbours in a row are two taps of a window
    T: tl.constexpr,
    LOWEST: tl.constexpr,
    INTERPRETING: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    row = width * channels if ACROSS else width
    n, y, at, c, x, begin, inside = tile_of_program(height, width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    image = strided(input, n, c, stride)
    best = tl.full((BLOCK_Y, BLOCK_X), LOWEST, T)
    # What is no more than the lowest number does not win: then the first tap is the maximum.
    index = tl.zeros((BLOCK_Y, BLOCK_X), tl.int32)
    if not WHOLE:
        index += (_first_tap(y, VERTICAL) * HORIZONTAL[0])[:, None] + _first_tap(x, HORIZONTAL)[None, :]
    if PAIRS:
        from_x = tl.program_id(0) % tl.cdiv(row, BLOCK_X) * (2 * BLOCK_X) + tl.arange(0, 2 * BLOCK_X)
        there = (y < height)[:, None] & (from_x < 2 * width)[None, :]
        for ky in tl.static_range(VERTICAL[0]):
            pairs = tl.load(image + offsets(y * VERTICAL[1] + ky, from_x, stride), mask=there, other=LOWEST)
            left, right = tl.split(tl.reshape(pairs, (BLOCK_Y, BLOCK_X, 2)))
            best, index = _better(best, index, widen(left, T), 2 * ky)
            best, index = _better(best, index, widen(right, T), 2 * ky + 1)
    elif VERTICAL[0] * HORIZONTAL[0] <= UNROLLED:
        for ky in tl.static_range(VERTICAL[0]):
            for kx in tl.static_range(HORIZONTAL[0]):
                best, index = _pool_tap(
                    best, index, image, y, x, ky, kx, in_height, in_width, stride, inside,
                    VERTICAL, HORIZONTAL, LOWEST, WHOLE,
                )  # fmt: skip
    else:
        for tap in range(VERTICAL[0] * HORIZONTAL[0]):
            best, index = _pool_tap(
                best, index, image, y, x, tap // HORIZONTAL[0], tap % HORIZONTAL[0], in_height, in_width, stride,
                inside, VERTICAL, HORIZONTAL, LOWEST, WHOLE,
            )  # fmt: skip
    to = begin[:, None] + at[None, :]
    tl.store(output + to, narrow(best, output.dtype.element_ty, INTERPRETING), mask=inside)
    tl.store(indices + to, index.to(tl.uint8), mask=inside)


@triton.jit
def _add_window(
    total,
    input,
    indices,
    y,
    x,
    iy,
    ix,
    in_height,
    in_width,
    stride,
    index_stride,
    inside,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    window_y, tap_y = _window_at(y, iy, in_height, VERTICAL)
    window_x, tap_x = _window_at(x, ix, in_width, HORIZONTAL)
    there = inside & (window_y >= 0)[:, None] & (window_x >= 0)[None, :]
    index = tl.load(indices + offsets(window_y, window_x, index_stride), mask=there, other=0).to(tl.int32)
    hit = there & (index == (tap_y * HORIZONTAL[0])[:, None] + tap_x[None, :])
    value = tl.load(input + offsets(window_y, window_x, stride), mask=hit, other=0)
    if ACCUMULATE:
        return total + widen(value, total.dtype)
    else:
        return tl.where(hit, value, total)


@triton.jit
def max_unpool_kernel(
    input,  # [N, C, h, w] by strides
    indices,  # uint8, the same
    output,  # [N, C, H, W], dense
    channels,
    height,
    width,
    in_height,
    in_width,
    stride,
    index_stride,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
    REACH: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    T: tl.constexpr,
    INTERPRETING: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """A gather: each output asks the windows that reach it, in row-major order."""
    n, y, at, c, x, begin, inside = tile_of_program(height, width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    values, indices = strided(input, n, c, stride), strided(indices, n, c, index_stride)
    total = tl.zeros((BLOCK_Y, BLOCK_X), T)
    if REACH[0] * REACH[1] <= UNROLLED:
        for i in tl.static_range(REACH[0] * REACH[1]):
            total = _add_window(
                total, values, indices, y, x, REACH[0] - 1 - i // REACH[1], REACH[1] - 1 - i % REACH[1],
                in_height, in_width, stride, index_stride, inside, VERTICAL, HORIZONTAL, ACCUMULATE,
            )  # fmt: skip
    else:
        for i in range(REACH[0] * REACH[1]):
            total = _add_window(
                total, values, indices, y, x, REACH[0] - 1 - i // REACH[1], REACH[1] - 1 - i % REACH[1],
                in_height, in_width, stride, index_stride, inside, VERTICAL, HORIZONTAL, ACCUMULATE,
            )  # fmt: skip
    value = narrow(total, output.dtype.element_ty, INTERPRETING) if ACCUMULATE else total
    tl.store(output + begin[:, None] + at[None, :], value, mask=inside)


@triton.jit
def max_unpool_pairs_kernel(
    input,  # [N, C, h, w] by strides
    indices,  # uint8, the same
    output,  # [N, C, H, W], dense
    seen,
    channels,
    height,
    width,
    in_height,
    in_width,
    stride,
    index_stride,
    T: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Windows 2 x 2 side by side: each is read once, checked, and writes its four outputs.

    In a tile of windows there are also those that would begin inside the output, and hold nothing.
    """
    rows = tl.maximum(in_height, (height + 1) // 2)
    columns = tl.maximum(in_width, (width + 1) // 2)
    row = columns * channels if ACROSS else columns
    n, y, at, c, x, _, _ = tile_of_program(rows, columns, channels, ACROSS, BLOCK_Y, BLOCK_X)
    there = (y < in_height)[:, None] & (x < in_width)[None, :]
    index = tl.load(strided(indices, n, c, index_stride) + offsets(y, x, index_stride), mask=there, other=4)
    value = tl.load(strided(input, n, c, stride) + offsets(y, x, stride), mask=there, other=0)
    index = index.to(tl.int32)
    outside = (2 * y[:, None] + (index >> 1) >= height) | (2 * x[None, :] + (index & 1) >= width)
    note_bad(seen, there & ((index > 3) | outside), n, c, y, x, channels, in_height, in_width)
    nothing = tl.zeros((BLOCK_Y, BLOCK_X), T)
    for ky in tl.static_range(2):
        left = tl.where(index == 2 * ky, value, nothing)
        right = tl.where(index == 2 * ky + 1, value, nothing)
        from_y = 2 * y + ky
        if ACROSS:
            to = ((n.to(tl.int64) * height + from_y) * width)[:, None] * channels + (2 * x * channels + c)[None, :]
            inside = (from_y < height)[:, None] & (at < row)[None, :]
            tl.store(output + to, left, mask=inside & (2 * x < width)[None, :])
            tl.store(output + to + channels, right, mask=inside & (2 * x + 1 < width)[None, :])
        else:
            from_x = tl.program_id(0) % tl.cdiv(row, BLOCK_X) * (2 * BLOCK_X) + tl.arange(0, 2 * BLOCK_X)
            plane = (n * channels + c).to(tl.int64)
            to = ((plane * height + from_y) * width)[:, None] + from_x[None, :]
            inside = (from_y < height)[:, None] & (from_x < width)[None, :]
            tl.store(output + to, tl.interleave(left, right), mask=inside)


@triton.jit
def max_unpool_check_kernel(
    indices,  # uint8 [N, C, h, w] by strides
    seen,
    channels,
    height,
    width,
    in_height,
    in_width,
    index_stride,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """What points nowhere. The gather does not see it."""
    n, y, _, c, x, _, there = tile_of_program(in_height, in_width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    index = tl.load(strided(indices, n, c, index_stride) + offsets(y, x, index_stride), mask=there, other=0)
    _, _, good = _target(index.to(tl.int32), y, x, height, width, VERTICAL, HORIZONTAL)
    note_bad(seen, there & (good == 0), n, c, y, x, channels, in_height, in_width)


@triton.jit
def _target(index, y, x, height, width, VERTICAL: tl.constexpr, HORIZONTAL: tl.constexpr):
    """Row and column that the index of window (y, x) points at, and whether it is an element."""
    to_y = (y * VERTICAL[1] - VERTICAL[2])[:, None] + index // HORIZONTAL[0] * VERTICAL[3]
    to_x = (x * HORIZONTAL[1] - HORIZONTAL[2])[None, :] + index % HORIZONTAL[0] * HORIZONTAL[3]
    good = (index < VERTICAL[0] * HORIZONTAL[0]) & (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
    return to_y, to_x, good


@triton.jit
def _is_latest(
    stands,
    indices,
    to_y,
    to_x,
    y,
    x,
    iy,
    ix,
    in_height,
    in_width,
    index_stride,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
):
    window_y, tap_y = _window_at(to_y, iy, in_height, VERTICAL)
    window_x, tap_x = _window_at(to_x, ix, in_width, HORIZONTAL)
    later = (window_y > y[:, None]) | ((window_y == y[:, None]) & (window_x > x[None, :]))
    later &= stands & (window_y >= 0) & (window_x >= 0)
    at = window_y.to(tl.int64) * index_stride[2] + window_x.to(tl.int64) * index_stride[3]
    index = tl.load(indices + at, mask=later, other=0).to(tl.int32)
    return stands & ((later == 0) | (index != tap_y * HORIZONTAL[0] + tap_x))


@triton.jit
def max_unpool_backward_kernel(
    grad_output,  # [N, C, H, W] by strides
    indices,  # uint8 [N, C, h, w] by strides
    grad_input,  # [N, C, h, w], dense
    channels,
    height,
    width,
    in_height,
    in_width,
    stride,
    index_stride,
    VERTICAL: tl.constexpr,
    HORIZONTAL: tl.constexpr,
    REACH: tl.constexpr,
    LATEST: tl.constexpr,  # whether only the latest of several windows has the gradient
    ACROSS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n, y, at, c, x, begin, inside = tile_of_program(in_height, in_width, channels, ACROSS, BLOCK_Y, BLOCK_X)
    indices = strided(indices, n, c, index_stride)
    index = tl.load(indices + offsets(y, x, index_stride), mask=inside, other=0).to(tl.int32)
    to_y, to_x, good = _target(index, y, x, height, width, VERTICAL, HORIZONTAL)
    stands = inside & good
    if LATEST:
        if REACH[0] * REACH[1] <= UNROLLED:
            for i in tl.static_range(REACH[0] * REACH[1]):
                stands = _is_latest(
                    stands, indices, to_y, to_x, y, x, i // REACH[1], i % REACH[1], in_height, in_width,
                    index_stride, VERTICAL, HORIZONTAL,
                )  # fmt: skip
        else:
            for i in range(REACH[0] * REACH[1]):
                stands = _is_latest(
                    stands, indices, to_y, to_x, y, x, i // REACH[1], i % REACH[1], in_height, in_width,
                    index_stride, VERTICAL, HORIZONTAL,
                )  # fmt: skip
    at_target = to_y.to(tl.int64) * stride[2] + to_x.to(tl.int64) * stride[3]
    value = tl.load(strided(grad_output, n, c, stride) + at_target, mask=stands, other=0)
    tl.store(grad_input + begin[:, None] + at[None, :], value, mask=inside)
