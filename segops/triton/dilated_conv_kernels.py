"""Kernels of dilated_conv in Triton. Forward and for the gradient of the input they are the same: sums over taps.

An axis is told by nine numbers. Destination i of `count` is at `first + i * step`; at tap k of `taps`, it reads source
`source + i * apart + k * per_tap`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.numeric import narrow, widen


@triton.jit
def _places(pixel, height, width):
    """Image, row and column of pixels counted row by row over all images."""
    line = pixel // width
    return (line // height).to(tl.int64), (line % height).to(tl.int32), (pixel % width).to(tl.int32)


@triton.jit
def _offsets(n, y, x, strides):
    return n * strides[0] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]


@triton.jit
def _inside(there, y, x, height, width):
    return there & (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _sources(i, j, tap, tap_width, vertical, horizontal):
    """Rows and columns that destinations (i, j) of a phase read at one of its taps, and that tap's number among all."""
    ty = tap // horizontal[6]
    tx = tap % horizontal[6]
    y = vertical[3] + i * vertical[4] + ty * vertical[5]
    x = horizontal[3] + j * horizontal[4] + tx * horizontal[5]
    return y, x, (vertical[7] + ty * vertical[8]) * tap_width + horizontal[7] + tx * horizontal[8]


@triton.jit
def _activated(x, channel, slope, ACTIVATION: tl.constexpr, mask):
    if ACTIVATION == 1:
        return tl.where(x < 0, 0.0, x).to(x.dtype)
    elif ACTIVATION == 2:
        return tl.where(x > 0, x, x * 0.01)
    elif ACTIVATION == 3:
        return x / (1 + tl.exp(-x))
    elif ACTIVATION == 4:
        return 1 / (1 + tl.exp(-x))
    elif ACTIVATION == 5:
        return tl.where(x > 0, x, x * tl.load(slope + channel, mask=mask, other=0.0)[None, :])
    else:
        return x


@triton.jit
def _finish(
    total,
    n,
    i,
    j,
    there,
    channel,
    mask,
    axes,
    vectors,
    images,
    strides,
    ACTIVATION: tl.constexpr,
    T: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    """The epilogue of sums [pixels, channels], and their store: `there` and `mask` tell which of them are of use."""
    vertical, horizontal = axes
    bias, scale, shift, slope = vectors
    destination, residual = images
    destination_strides, residual_strides = strides
    y = vertical[1] + i * vertical[2]
    x = horizontal[1] + j * horizontal[2]
    stored = there[:, None] & mask[None, :]
    if bias is not None:
        total += tl.load(bias + channel, mask=mask, other=0.0)[None, :]
    if scale is not None:
        total *= tl.load(scale + channel, mask=mask, other=0.0)[None, :]
    if shift is not None:
        total += tl.load(shift + channel, mask=mask, other=0.0)[None, :]
    if residual is not None:
        at = _offsets(n, y, x, residual_strides)[:, None] + (channel.to(tl.int64) * residual_strides[1])[None, :]
        total += widen(tl.load(residual + at, mask=stored, other=0.0), T)
    value = narrow(_activated(total, channel, slope, ACTIVATION, mask), destination.dtype.element_ty, INTERPRETING)
    to = (destination + _offsets(n, y, x, destination_strides))[:, None]
    tl.store(to + (channel.to(tl.int64) * destination_strides[1])[None, :], value, mask=stored)


@triton.jit
def dilated_conv_kernel(
    source,  # [N, groups * C, h, w] by strides, channels last
    packed,  # [groups, all taps, C, K]
    destination,  # [N, groups * K, H, W] by strides
    bias,  # [groups * K], as the next three; None where there is none
    scale,
    shift,
    slope,
    residual,
    pixels,  # destinations of one channel in all images
    channels,  # C
    columns,  # K
    height,  # h
    width,  # w
    tap_width,  # taps of a row of the whole kernel
    all_taps,
    source_strides,
    destination_strides,
    residual_strides,
    vertical,  # count, first, step, source, apart, per_tap, taps, first tap, taps between
    horizontal,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    INTERPRETING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of destination pixels and channels: a product of matrices that sums over taps and source channels."""
    tiles = tl.cdiv(columns, BLOCK_N)
    blocks = tl.cdiv(pixels, BLOCK_M)
    program = tl.program_id(0)
    group = program // (tiles * blocks)
    pixel = program // tiles % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    column = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    n, i, j = _places(pixel, vertical[0], horizontal[0])
    rows = source + group * channels + n * source_strides[0]

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    chunks = tl.cdiv(channels, BLOCK_K)
    for step in range(vertical[6] * horizontal[6] * chunks):
        tap = step // chunks
        c = step % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
        y, x, whole = _sources(i, j, tap, tap_width, vertical, horizontal)
        inside = _inside(pixel < pixels, y, x, height, width)
        at = y.to(tl.int64) * source_strides[2] + x.to(tl.int64) * source_strides[3]
        a = tl.load((rows + at)[:, None] + c[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        weights = packed + ((group * all_taps + whole).to(tl.int64) * channels + c) * columns
        b = tl.load(
            weights[:, None] + column[None, :], mask=(c < channels)[:, None] & (column < columns)[None, :], other=0.0
        )
        if INTERPRETING:
            total += tl.dot(widen(a, T), widen(b, T), input_precision="ieee")
        else:
            total = tl.dot(a, b, total, input_precision=PRECISION)

    channel = group * columns + column
    mask = column < columns
    axes, vectors = (vertical, horizontal), (bias, scale, shift, slope)
    images, strides = (destination, residual), (destination_strides, residual_strides)
    _finish(total, n, i, j, pixel < pixels, channel, mask, axes, vectors, images, strides, ACTIVATION, T, INTERPRETING)


@triton.jit
def dilated_conv_direct_kernel(
    source,  # [N, groups * C, h, w] by strides
    packed,  # [groups, all taps, C, K]
    destination,
    bias,
    scale,
    shift,
    slope,
    residual,
    pixels,
    channels,
    columns,
    groups,
    height,
    width,
    tap_width,
    all_taps,
    source_strides,
    destination_strides,
    residual_strides,
    vertical,
    horizontal,
    ACTIVATION: tl.constexpr,
    T: tl.constexpr,
    INTERPRETING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The same, a tap and a source channel of each group at a time: for few channels in a group, and float64."""
    tiles = tl.cdiv(groups * columns, BLOCK_N)
    program = tl.program_id(0)
    pixel = program // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = channel < groups * columns
    group = channel // columns
    own = channel % columns
    n, i, j = _places(pixel, vertical[0], horizontal[0])

    total = tl.zeros((BLOCK_M, BLOCK_N), T)
    for step in range(vertical[6] * horizontal[6] * channels):
        tap = step // channels
        c = step % channels
        y, x, whole = _sources(i, j, tap, tap_width, vertical, horizontal)
        inside = _inside(pixel < pixels, y, x, height, width)
        from_channel = ((group * channels + c).to(tl.int64) * source_strides[1])[None, :]
        at = _offsets(n, y, x, source_strides)
        a = tl.load((source + at)[:, None] + from_channel, mask=inside[:, None] & mask[None, :], other=0.0)
        weights = packed + ((group * all_taps + whole).to(tl.int64) * channels + c) * columns + own
        b = tl.load(weights, mask=mask, other=0.0)
        total += widen(a, T) * widen(b, T)[None, :]

    axes, vectors = (vertical, horizontal), (bias, scale, shift, slope)
    images, strides = (destination, residual), (destination_strides, residual_strides)
    _finish(total, n, i, j, pixel < pixels, channel, mask, axes, vectors, images, strides, ACTIVATION, T, INTERPRETING)


@triton.jit
def _window_sources(i, j, tap, tap_width, window):
    """Rows and columns that outputs (i, j) read at a tap."""
    y = i * window[0] + (tap // tap_width * window[4] - window[2])
    return y, j * window[1] + (tap % tap_width * window[5] - window[3])


@triton.jit
def dilated_conv_grad_weight_kernel(
    input,  # [N, groups * C, h, w] by strides, channels last
    grad_output,  # [N, groups * K, H, W] by strides, channels last
    sums,  # [parts, groups, K, taps, C]
    pixels,  # of grad_output, in all images
    part,  # pixels of a part, whole blocks
    channels,  # C
    columns,  # K
    groups,
    height,  # h
    width,  # w
    out_height,
    out_width,
    input_strides,
    output_strides,
    window,  # stride, padding, dilation of both axes
    tap_width,
    taps,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    INDEX: tl.constexpr,
    INTERPRETING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of weights of one tap, summed over one part of the pixels."""
    tiles_m = tl.cdiv(columns, BLOCK_M)
    tiles_n = tl.cdiv(channels, BLOCK_N)
    program = tl.program_id(0)
    c = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // tiles_n
    tap = program % taps
    program = program // taps
    k = program % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    program = program // tiles_m
    group = program % groups
    begin = (program // groups).to(INDEX) * part

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, part, BLOCK_K):
        pixel = begin + start + tl.arange(0, BLOCK_K)
        there = pixel < pixels
        n, i, j = _places(pixel, out_height, out_width)
        at = _offsets(n, i, j, output_strides)
        a = tl.load(
            (grad_output + group * columns + at)[:, None] + k[None, :],
            mask=there[:, None] & (k < columns)[None, :],
            other=0.0,
        )
        y, x = _window_sources(i, j, tap, tap_width, window)
        inside = _inside(there, y, x, height, width)
        at = _offsets(n, y, x, input_strides)
        b = tl.load(
            (input + group * channels + at)[:, None] + c[None, :],
            mask=inside[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        if INTERPRETING:
            total += tl.dot(tl.trans(widen(a, T)), widen(b, T), input_precision="ieee")
        else:
            total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    to = (program.to(tl.int64) * columns + k) * taps + tap
    tl.store((sums + to * channels)[:, None] + c[None, :], total, mask=(k < columns)[:, None] & (c < channels)[None, :])


@triton.jit
def dilated_conv_grad_weight_direct_kernel(
    input,  # [N, groups * C, h, w] by strides
    grad_output,  # [N, groups * K, H, W] by strides
    sums,  # [parts, groups, K, taps, C]
    pixels,
    part,
    channels,
    columns,
    groups,
    height,
    width,
    out_height,
    out_width,
    input_strides,
    output_strides,
    window,
    tap_width,
    taps,
    T: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The same of several channels of the gradient, each by one channel of the input."""
    tiles = tl.cdiv(groups * columns, BLOCK_N)
    program = tl.program_id(0)
    channel = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = channel < groups * columns
    program = program // tiles
    c = program % channels
    tap = program // channels % taps
    number = program // channels // taps
    begin = number.to(INDEX) * part
    from_channel = ((channel // columns * channels + c).to(tl.int64) * input_strides[1])[None, :]

    total = tl.zeros((BLOCK_N,), T)
    for start in range(0, part, BLOCK_K):
        pixel = begin + start + tl.arange(0, BLOCK_K)
        n, i, j = _places(pixel, out_height, out_width)
        y, x = _window_sources(i, j, tap, tap_width, window)
        inside = _inside(pixel < pixels, y, x, height, width)
        there = inside[:, None] & mask[None, :]
        at = _offsets(n, i, j, output_strides)
        own = (channel.to(tl.int64) * output_strides[1])[None, :]
        a = tl.load((grad_output + at)[:, None] + own, mask=there, other=0.0)
        at = _offsets(n, y, x, input_strides)
        b = tl.load((input + at)[:, None] + from_channel, mask=there, other=0.0)
        total += tl.sum(widen(a, T) * widen(b, T), 0)
    to = ((number.to(tl.int64) * groups * columns + channel) * taps + tap) * channels + c
    tl.store(sums + to, total, mask=mask)


@triton.jit
def dilated_conv_combine_kernel(
    sums,  # [parts, count]
    total,  # [count]
    parts,
    count,
    INTERPRETING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The parts added up in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(sums + at, mask=at < count, other=0.0)
    for _ in range(1, parts):
        sums += count
        value += tl.load(sums + at, mask=at < count, other=0.0)
    tl.store(total + at, narrow(value, total.dtype.element_ty, INTERPRETING), mask=at < count)
