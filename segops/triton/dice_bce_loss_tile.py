"""dice_bce_loss, a tile of elements at a time: what its kernels have in common, and the two that read each logit once.

A program takes `steps` tiles [BLOCK_C, BLOCK_P] of some channels of one image, one after the other. Sums stay spread
over [BLOCK_C, BLOCK_P / FOLD] until the last of them; FOLD neighbouring pixels belong to one thread. Coarse logits are
interpolated where others are loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.dice_ce_loss_value import store_overlap, store_totals
from segops.triton.interpolate import bilinear_taps, blend
from segops.triton.numeric import exp_of_difference, fold, log1p, narrow, widen


@triton.jit
def offsets(n, c, pixel, stride):
    """[BLOCK_C, BLOCK_P], in 64 bits: n and pixel have them."""
    return (n * stride[0] + c.to(tl.int64) * stride[1])[:, None] + (pixel * stride[2])[None, :]


@triton.jit
def labels_at(target, at, inside, ignore, T: tl.constexpr, HAS_IGNORE: tl.constexpr, SLACK: tl.constexpr):
    """Labels in T, zero where they do not count; whether they do; whether they are neither labels nor ignored."""
    raw = tl.load(target + at, mask=inside, other=0)
    label = raw if raw.dtype == tl.float64 else widen(raw, tl.float32)
    kept = inside
    if HAS_IGNORE:
        kept = kept & (label != tl.full((1, 1), ignore, tl.float64).to(label.dtype))
    counts = kept & (label >= -SLACK) & (label <= 1.0 + SLACK)
    return tl.where(counts, label, 0.0).to(T), counts, kept & (counts == 0)


@triton.jit
def weights_at(pixel_weight, at, counts, T: tl.constexpr):
    """Weights of the cross-entropy, zero where the label does not count."""
    if pixel_weight is not None:
        return tl.load(pixel_weight + at, mask=counts, other=0.0)
    else:
        return counts.to(T)


@triton.jit
def positive_weights(pos_weight, c, channels, T: tl.constexpr):
    """[BLOCK_C, 1]."""
    if pos_weight is not None:
        return tl.load(pos_weight + c, mask=c < channels, other=0.0).to(T)[:, None]
    else:
        return tl.full((1, 1), 1.0, T)


@triton.jit
def overlap_slopes(grad_overlap, n, c, channels, T: tl.constexpr):
    """Derivatives with respect to I and P, [BLOCK_C, 1] both."""
    if grad_overlap is not None:
        at = grad_overlap + n * 3 * channels + c
        of_i = tl.load(at, mask=c < channels, other=0.0).to(T)
        return of_i[:, None], tl.load(at + channels, mask=c < channels, other=0.0).to(T)[:, None]
    else:
        return tl.full((1, 1), 0.0, T), tl.full((1, 1), 0.0, T)


@triton.jit
def sigmoids(x):
    """sigmoid(x), sigmoid(-x) and log(1 + exp(-|x|)), each precise where it is small."""
    e = exp_of_difference(-tl.abs(x))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(x < 0, smaller, larger), tl.where(x < 0, larger, smaller), log1p(e)


@triton.jit
def cross_entropy(x, rest, t, q):
    """q t softplus(-x) + (1 - t) softplus(x), where rest is log(1 + exp(-|x|))."""
    of_positive = tl.maximum(-x, 0.0, propagate_nan=tl.PropagateNan.ALL) + rest
    of_negative = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + rest
    return q * t * of_positive + (1.0 - t) * of_negative


@triton.jit
def missed(p, complement, t):
    """1 - p_t, without cancellation. Labels beyond [0, 1] could make it negative."""
    return tl.maximum(p * (1.0 - t) + complement * t, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def power(x, exponent):
    """x^exponent for x >= 0 and an exponent above 0."""
    return tl.exp2(exponent.to(x.dtype) * tl.log2(x))


@triton.jit
def gradient(
    x, t, own, q, of_bce, of_i, of_p, focal_gamma, T: tl.constexpr, FOCAL: tl.constexpr, SQUARED: tl.constexpr
):
    """Of the loss to a logit, from its derivatives with respect to the three sums."""
    p, complement, rest = sigmoids(x)
    slope = (1.0 - t) * p - q * t * complement
    if FOCAL:
        gamma = tl.full((1, 1), focal_gamma, tl.float64)
        r = missed(p, complement, t)
        factor = power(r, gamma)
        # factor / r is infinite at r = 0 for gamma < 1, its product with the derivative of r is not.
        of_r = (1.0 - 2.0 * t) * (p * complement) / r
        slope = tl.where(r == 0, 0.0, factor * (slope + gamma.to(T) * of_r * cross_entropy(x, rest, t, q)))
    # A term of weight zero is left out: its NaN goes no further.
    slope = tl.where(of_bce == 0, 0.0, of_bce * own * slope)
    return slope + (of_i * t + (2.0 * of_p * p if SQUARED else of_p)) * (p * complement)


@triton.jit
def _tile(channels, chunks, steps, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of this program: image and first pixel in 64 bits, the channels, and its number among those of the image."""
    blocks_c = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    n = (program // (chunks * blocks_c)).to(tl.int64)
    c = program // chunks % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk = (program % chunks).to(tl.int64)
    return n, c, chunk, chunk * steps * BLOCK_P


@triton.jit
def _logits(rows, first, lanes, inside, stride_s, grid, COARSE: tl.constexpr, ALIGN: tl.constexpr, T: tl.constexpr):
    """[BLOCK_C, BLOCK_P] logits of the pixels from `first` on; coarse ones have a `coarse_grid`."""
    if COARSE:
        width, coarse_height, coarse_width, step_h, step_w = grid
        # One division in 64 bits for all lanes.
        column = (first % width).to(tl.int32) + lanes
        y, x = (first // width).to(tl.int32) + column // width, column % width
        line = stride_s * coarse_width
        taps = bilinear_taps(y, x, coarse_height, coarse_width, line, stride_s, step_h, step_w, ALIGN, T)
        return blend(rows, taps, inside, T)
    else:
        return widen(tl.load(rows[:, None] + ((first + lanes) * stride_s)[None, :], mask=inside, other=0.0), T)


@triton.jit(do_not_specialize=["chunks", "steps"])
def dice_bce_loss_statistics_kernel(
    logits,  # [N, C, S], or coarse, by strides
    target,  # [N, C, S] by strides, as the next two
    pixel_weight,  # T, or None
    bce_map,  # T, or None
    pos_weight,  # float64 [C] or None
    partial_overlap,  # T [N, chunks, 3, C] or None
    partial_bce,  # T [programs, 2]
    partial_bad,  # int64 [programs, 2]: count, flat position of the first
    channels,
    pixels,
    stride,
    target_stride,
    weight_stride,
    map_stride,
    width,  # W; this and the next four are of coarse logits
    coarse_height,
    coarse_width,
    step_h: tl.float64,
    step_w: tl.float64,
    chunks,
    steps,
    ignore: tl.float64,
    focal_gamma: tl.float64,
    COARSE: tl.constexpr,
    ALIGN: tl.constexpr,
    T: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    SLACK: tl.constexpr,
    FOCAL: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FOLD: tl.constexpr,
):
    n, c, chunk, begin = _tile(channels, chunks, steps, BLOCK_C, BLOCK_P)
    lanes = tl.arange(0, BLOCK_P)
    is_channel = (c < channels)[:, None]
    q = positive_weights(pos_weight, c, channels, T)
    if partial_overlap is not None:
        sum_i = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
        sum_p = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
        sum_t = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
    sum_loss = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
    sum_own = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
    bad_count = tl.zeros((BLOCK_C, BLOCK_P // FOLD), tl.int32)
    bad_first = tl.full((BLOCK_C, BLOCK_P // FOLD), 0x7FFFFFFF, tl.int32)
    for step in range(steps):
        first = begin + step * BLOCK_P
        inside = is_channel & (lanes < pixels - first)[None, :]
        pixel = first + lanes
        at = offsets(n, c, pixel, target_stride)
        t, counts, bad = labels_at(target, at, inside, ignore, T, HAS_IGNORE, SLACK)
        bad_count += fold(bad.to(tl.int32), FOLD)
        position = tl.where(bad, step * BLOCK_P + lanes[None, :], 0x7FFFFFFF)
        position = tl.min(tl.reshape(position, (BLOCK_C, BLOCK_P // FOLD, FOLD)), axis=2)
        bad_first = tl.minimum(bad_first, position)
        own = weights_at(pixel_weight, offsets(n, c, pixel, weight_stride), counts, T)
        rows = logits + n * stride[0] + c.to(tl.int64) * stride[1]
        grid = width, coarse_height, coarse_width, step_h, step_w
        x = _logits(rows, first, lanes, inside, stride[2], grid, COARSE, ALIGN, T)
        p, complement, rest = sigmoids(x)
        loss = cross_entropy(x, rest, t, q)
        if FOCAL:
            loss *= power(missed(p, complement, t), tl.full((1, 1), focal_gamma, tl.float64))
        loss = tl.where(counts, own * loss, 0.0)
        sum_loss += fold(loss, FOLD)
        sum_own += fold(own, FOLD)
        if bce_map is not None:
            tl.store(bce_map + offsets(n, c, pixel, map_stride), loss, mask=inside)
        if partial_overlap is not None:
            p = tl.where(counts, p, 0.0)
            sum_i += fold(p * t, FOLD)
            sum_p += fold(p * p if SQUARED else p, FOLD)
            sum_t += fold(t * t if SQUARED else t, FOLD)

    if partial_overlap is not None:
        to = partial_overlap + (n * chunks + chunk) * 3 * channels + c
        tl.store(to, tl.sum(sum_i, axis=1), mask=c < channels)
        tl.store(to + channels, tl.sum(sum_p, axis=1), mask=c < channels)
        tl.store(to + 2 * channels, tl.sum(sum_t, axis=1), mask=c < channels)
    program = tl.program_id(0).to(tl.int64)
    tl.store(partial_bce + 2 * program, tl.sum(tl.sum(sum_loss, axis=1), axis=0))
    tl.store(partial_bce + 2 * program + 1, tl.sum(tl.sum(sum_own, axis=1), axis=0))
    position = (n * channels + c)[:, None] * pixels + begin + bad_first
    position = tl.where(bad_count > 0, position, 0x7FFFFFFFFFFFFFFF)
    tl.store(partial_bad + 2 * program, tl.sum(tl.sum(bad_count, axis=1), axis=0).to(tl.int64))
    tl.store(partial_bad + 2 * program + 1, tl.min(tl.min(position, axis=1), axis=0))


@triton.jit(do_not_specialize=["chunks", "programs"])
def dice_bce_loss_sums_kernel(
    partial_overlap,  # T [N, chunks, 3, C] or None
    partial_bce,  # T [programs, 2]
    partial_bad,  # int64 [programs, 2]
    target,  # [N, C, S] by strides
    overlap,  # float64 [N, 3, C] or None
    bce,  # float64 [2]
    bad_labels,  # int64 [3]
    channels,
    pixels,
    target_stride,
    chunks,
    programs,
    groups,  # of BLOCK_E entries
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each image and group of entries; the last one adds the cross-entropy and the bad labels."""
    if tl.program_id(0) + 1 < tl.num_programs(0):
        if partial_overlap is not None:
            store_overlap(partial_overlap, overlap, 3 * channels, chunks, groups, BLOCK_R, BLOCK_E)
    else:
        found, position = store_totals(partial_bce, partial_bad, bce, bad_labels, programs, BLOCK)
        plane = position // pixels
        at = plane // channels * target_stride[0] + plane % channels * target_stride[1]
        raw = tl.load(target + at + position % pixels * target_stride[2], mask=found > 0, other=0)
        if raw.dtype == tl.uint8:
            value = raw.to(tl.int64)
        else:
            wide = raw if raw.dtype == tl.float64 else widen(raw, tl.float32).to(tl.float64)
            value = tl.where(found > 0, wide.to(tl.int64, bitcast=True), 0)
        tl.store(bad_labels + 2, value)


@triton.jit(do_not_specialize=["chunks", "steps"])
def dice_bce_loss_backward_kernel(
    logits,  # [N, C, S] by strides, as the next two
    target,
    pixel_weight,  # T, or None
    pos_weight,  # float64 [C] or None
    grad_overlap,  # float64 [N, 3, C] or None
    grad_bce,  # float64 [2] or None
    grad_logits,  # [N, C, S] by strides
    channels,
    pixels,
    stride,
    target_stride,
    weight_stride,
    grad_stride,
    chunks,
    steps,
    ignore: tl.float64,
    focal_gamma: tl.float64,
    T: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    SLACK: tl.constexpr,
    FOCAL: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    n, c, _chunk, begin = _tile(channels, chunks, steps, BLOCK_C, BLOCK_P)
    lanes = tl.arange(0, BLOCK_P)
    is_channel = (c < channels)[:, None]
    q = positive_weights(pos_weight, c, channels, T)
    of_i, of_p = overlap_slopes(grad_overlap, n, c, channels, T)
    of_bce = tl.full((1, 1), 0.0, tl.float64)
    if grad_bce is not None:
        of_bce += tl.load(grad_bce)
    for step in range(steps):
        first = begin + step * BLOCK_P
        inside = is_channel & (lanes < pixels - first)[None, :]
        pixel = first + lanes
        at = offsets(n, c, pixel, target_stride)
        t, counts, _ = labels_at(target, at, inside, ignore, T, HAS_IGNORE, SLACK)
        own = weights_at(pixel_weight, offsets(n, c, pixel, weight_stride), counts, T)
        x = widen(tl.load(logits + offsets(n, c, pixel, stride), mask=inside, other=0.0), T)
        grad = gradient(x, t, own, q, of_bce.to(T), of_i, of_p, focal_gamma, T, FOCAL, SQUARED)
        grad = tl.where(counts, grad, 0.0)
        at = offsets(n, c, pixel, grad_stride)
        tl.store(grad_logits + at, narrow(grad, grad_logits.dtype.element_ty, INTERPRETING), mask=inside)
