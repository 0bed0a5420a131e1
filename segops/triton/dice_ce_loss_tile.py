"""dice_ce_loss for up to 64 classes: all classes of some pixels fit into registers, so the logits are read once.

A program takes `steps` tiles [BLOCK_C, BLOCK_P] of one image, one after the other. Sums over pixels stay spread over
[BLOCK_C, BLOCK_P / FOLD] until the last tile, because a sum across threads costs more than the softmax itself; FOLD
neighbouring pixels belong to one thread. Classes beyond the last have logits of minus infinity.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.numeric import exp_of_difference, fold, narrow, widen


@triton.jit
def image_of_program(chunks, size):
    """This program's image and first pixel, in 64 bits for the offsets made of them."""
    program = tl.program_id(0)
    return (program // chunks).to(tl.int64), (program % chunks).to(tl.int64) * size


@triton.jit
def labels_at(target, at, inside, classes, ignore_index):
    """Labels as int32, -1 where they do not count; and where they are neither a class nor ignored."""
    raw = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    is_class = (raw >= 0) & (raw < classes)
    kept = inside & (raw != ignore_index)
    return tl.where(kept & is_class, raw, -1).to(tl.int32), kept & (is_class == 0)


@triton.jit
def pixel_weights(weight, pixel_weight, label, at, T: tl.constexpr):
    """Weight of each pixel, and the weight of its label times that; both zero where the label does not count."""
    counts = label >= 0
    own = counts.to(T)
    if pixel_weight is not None:
        own = tl.load(pixel_weight + at, mask=counts, other=0.0)
    share = own
    if weight is not None:
        share = tl.load(weight + label, mask=counts, other=0.0).to(T) * own
    return own, share


@triton.jit
def class_weights(weight, c, classes, T: tl.constexpr):
    """[BLOCK_C] class weights, zero beyond the last class."""
    inside = c < classes
    if weight is not None:
        return tl.load(weight + c, mask=inside, other=0.0).to(T)
    else:
        return inside.to(T)


@triton.jit
def load_logits(rows, offsets, inside, c, classes, counts, T: tl.constexpr):
    """[BLOCK_C, BLOCK_P] logits of pixels; zero where the pixel does not count, so that NaN there goes no further."""
    mask = (c < classes)[:, None] & inside[None, :]
    x = widen(tl.load(rows[:, None] + offsets[None, :], mask=mask, other=float("-inf")), T)
    return tl.where(counts[None, :], x, 0.0)


@triton.jit
def first_largest(x, c):
    """[BLOCK_P]: class of the largest logit, the first of equals; NaN counts as the largest."""
    nan = x != x
    largest = tl.max(tl.where(nan, float("inf"), x), axis=0)
    any_nan = tl.max(nan.to(tl.int32), axis=0) > 0
    winners = tl.where(any_nan[None, :], nan, x == largest[None, :])
    return tl.min(tl.where(winners, c[:, None], 1 << 30), axis=0)


@triton.jit
def store_bad_labels(partial, program, count, first, at, n_pixels):
    """Add up what each lane saw: how many, and the flat position of the first (meaningless if there were none)."""
    tl.store(partial + 2 * program, tl.sum(count, axis=0).to(tl.int64))
    tl.store(partial + 2 * program + 1, n_pixels + at + tl.min(first, axis=0))


@triton.jit(do_not_specialize=["steps", "chunks", "ignore_index"])
def dice_ce_loss_statistics_tile_kernel(
    logits,  # [N, C, S] by strides
    target,  # [N, S]
    weight,  # float64 [C] or None
    pixel_weight,  # T [N, S] or None
    ce_map,  # T [N, S] or None
    confusion,  # int64 [C, C] or None, zeroed
    partial_overlap,  # T [programs, 3, C] or None
    partial_ce,  # T [programs, 2]
    partial_bad,  # int64 [programs, 2]
    classes,
    pixels,
    stride,
    chunks,
    steps,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    T: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FOLD: tl.constexpr,
    BINS: tl.constexpr,  # at least C * C: count a tile's confusion in shared memory; 0: pixel by pixel
):
    program = tl.program_id(0).to(tl.int64)
    n, begin = image_of_program(chunks, steps * BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    lanes = tl.arange(0, BLOCK_P)
    rows = logits + n * stride[0] + c.to(tl.int64) * stride[1]
    keep = (1.0 - tl.full((1,), label_smoothing, tl.float64)).to(T)
    if SMOOTHING:
        table = class_weights(weight, c, classes, T)
        total_weight = tl.sum(class_weights(weight, c, classes, tl.float64), axis=0).to(T)
        spread = (tl.full((1,), label_smoothing, tl.float64) / classes).to(T)
    if partial_overlap is not None:
        sum_i = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
        sum_p = tl.zeros((BLOCK_C, BLOCK_P // FOLD), T)
        count_t = tl.zeros((max(BLOCK_C, 2),), tl.int32)
    if BINS > 0:
        counted = tl.zeros((BINS,), tl.int32)
    sum_loss = tl.zeros((BLOCK_P,), T)
    sum_share = tl.zeros((BLOCK_P,), T)
    bad_count = tl.zeros((BLOCK_P,), tl.int32)
    bad_first = tl.full((BLOCK_P,), 0x7FFFFFFF, tl.int32)
    for step in range(steps):
        first = begin + step * BLOCK_P
        inside = lanes < pixels - first
        at = n * pixels + first + lanes
        label, bad = labels_at(target, at, inside, classes, ignore_index)
        bad_count += bad.to(tl.int32)
        bad_first = tl.minimum(bad_first, tl.where(bad, step * BLOCK_P + lanes, 0x7FFFFFFF))
        counts = label >= 0
        own, share = pixel_weights(weight, pixel_weight, label, at, T)
        x = load_logits(rows, (first + lanes) * stride[2], inside, c, classes, counts, T)
        is_target = c[:, None] == label[None, :]

        largest = tl.max(x, axis=0)
        e = exp_of_difference(x - largest[None, :])
        total = tl.sum(e, axis=0)
        log_total = tl.log(total)
        target_logit = tl.sum(tl.where(is_target, x, 0.0), axis=0) - largest
        loss = keep * share * (log_total - target_logit)
        if SMOOTHING:
            weighted = tl.where((c < classes)[:, None], (x - largest[None, :]) * table[:, None], 0.0)
            loss += spread * own * (total_weight * log_total - tl.sum(weighted, axis=0))
        loss = tl.where(counts, loss, 0.0)
        sum_loss += loss
        sum_share += share
        if ce_map is not None:
            tl.store(ce_map + at, loss, mask=inside)

        if partial_overlap is not None:
            p = e * tl.where(counts, 1.0 / total, 0.0)[None, :]
            sum_i += fold(tl.where(is_target, p, 0.0), FOLD)
            sum_p += fold(p * p if SQUARED else p, FOLD)
            count_t += tl.histogram(label, max(BLOCK_C, 2), mask=counts)
        if confusion is not None:
            cell = label * classes + first_largest(x, c)
            if BINS > 0:
                counted += tl.histogram(cell, BINS, mask=counts)
            else:
                tl.atomic_add(confusion + cell, tl.full((BLOCK_P,), 1, tl.int64), mask=counts, sem="relaxed")

    if partial_overlap is not None:
        to = partial_overlap + program * 3 * classes + c
        tl.store(to, tl.sum(sum_i, axis=1), mask=c < classes)
        tl.store(to + classes, tl.sum(sum_p, axis=1), mask=c < classes)
        lane_t = tl.arange(0, max(BLOCK_C, 2))
        to = partial_overlap + (program * 3 + 2) * classes + lane_t
        tl.store(to, count_t.to(T), mask=lane_t < classes)
    tl.store(partial_ce + 2 * program, tl.sum(sum_loss, axis=0))
    tl.store(partial_ce + 2 * program + 1, tl.sum(sum_share, axis=0))
    store_bad_labels(partial_bad, program, bad_count, bad_first, begin, n * pixels)
    if BINS > 0:
        bins = tl.arange(0, BINS)
        tl.atomic_add(confusion + bins, counted.to(tl.int64), mask=counted > 0, sem="relaxed")


@triton.jit
def gradient_scales(grad_ce, label_smoothing, classes, T: tl.constexpr):
    """Derivative of the loss with respect to a pixel's own cross-entropy, and to its sum over all classes."""
    g = tl.full((1,), 0.0, tl.float64)
    if grad_ce is not None:
        g += tl.load(grad_ce)
    return (g * (1.0 - tl.full((1,), label_smoothing, tl.float64))).to(T), (g * label_smoothing / classes).to(T)


@triton.jit(do_not_specialize=["steps", "chunks", "ignore_index"])
def dice_ce_loss_backward_tile_kernel(
    logits,  # [N, C, S] by strides
    target,  # [N, S]
    weight,  # float64 [C] or None
    pixel_weight,  # T [N, S] or None
    grad_overlap,  # float64 [N, 3, C] or None
    grad_ce,  # float64 [2] or None
    grad_logits,  # [N, C, S] by strides
    classes,
    pixels,
    stride,
    grad_stride,
    chunks,
    steps,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    T: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    """d loss / d x_c = p_c (a_c - sum_k a_k p_k) and the same of the cross-entropy, where a = d loss / d p.

    a_c is g_c (2 g_c p_c if squared), plus g_I at the target. Written as p_c (a_c + u) - spread w_c, plus q at the
    target.
    """
    n, begin = image_of_program(chunks, steps * BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    lanes = tl.arange(0, BLOCK_P)
    rows = logits + n * stride[0] + c.to(tl.int64) * stride[1]
    grad_rows = grad_logits + n * grad_stride[0] + c.to(tl.int64) * grad_stride[1]
    scale, spread = gradient_scales(grad_ce, label_smoothing, classes, T)
    if SMOOTHING:
        table = spread * class_weights(weight, c, classes, T)
        total_weight = tl.sum(class_weights(weight, c, classes, tl.float64), axis=0).to(T)
    if grad_overlap is not None:
        g = tl.load(grad_overlap + (n * 3 + 1) * classes + c, mask=c < classes, other=0.0).to(T)
        if SQUARED:
            g *= 2
    for step in range(steps):
        first = begin + step * BLOCK_P
        inside = lanes < pixels - first
        at = n * pixels + first + lanes
        label, _ = labels_at(target, at, inside, classes, ignore_index)
        counts = label >= 0
        own, share = pixel_weights(weight, pixel_weight, label, at, T)
        x = load_logits(rows, (first + lanes) * stride[2], inside, c, classes, counts, T)
        is_target = c[:, None] == label[None, :]

        e = exp_of_difference(x - tl.max(x, axis=0)[None, :])
        p = e * (1.0 / tl.sum(e, axis=0))[None, :]
        q = -scale * share
        u = -q
        if SMOOTHING:
            u += spread * total_weight * own
        if grad_overlap is not None:
            a = g[:, None] * p if SQUARED else g[:, None]
            of_target = tl.load(grad_overlap + n * 3 * classes + label, mask=counts, other=0.0).to(T)
            of_target *= tl.sum(tl.where(is_target, p, 0.0), axis=0)
            u -= tl.sum(a * p, axis=0) + of_target
            q += of_target
            grad = p * (a + u[None, :])
        else:
            grad = p * u[None, :]
        grad += tl.where(is_target, q[None, :], 0.0)
        if SMOOTHING:
            grad -= table[:, None] * own[None, :]
        grad = tl.where(counts[None, :], grad, 0.0)
        to = grad_rows[:, None] + ((first + lanes) * grad_stride[2])[None, :]
        mask = (c < classes)[:, None] & inside[None, :]
        tl.store(to, narrow(grad, grad_logits.dtype.element_ty, INTERPRETING), mask=mask)
