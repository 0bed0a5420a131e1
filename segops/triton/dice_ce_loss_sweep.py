"""dice_ce_loss for any number of classes, and for coarse logits: a program sweeps over the classes of BLOCK_P pixels,
BLOCK_C at a time.

The first sweep keeps a running maximum and rescales what was summed under the one before (Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018); the second has the softmax.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.dice_ce_loss_coarse import load_coarse_logits
from segops.triton.dice_ce_loss_tile import (
    class_weights,
    first_largest,
    gradient_scales,
    image_of_program,
    labels_at,
    load_logits,
    pixel_weights,
    store_bad_labels,
)
from segops.triton.interpolate import bilinear_taps
from segops.triton.numeric import exp_of_difference, narrow


@triton.jit
def _places(p, stride_s, grid, COARSE: tl.constexpr, ALIGN: tl.constexpr, T: tl.constexpr):
    """Where in their plane the logits of pixels p lie: offsets, or taps of coarse logits with a `coarse_grid`."""
    if COARSE:
        width, coarse_height, coarse_width, step_h, step_w = grid
        y, x, line = p // width, p % width, stride_s * coarse_width
        return bilinear_taps(y, x, coarse_height, coarse_width, line, stride_s, step_h, step_w, ALIGN, T)
    else:
        return p * stride_s


@triton.jit
def _logits(image, stride_c, c, classes, places, inside, counts, COARSE: tl.constexpr, T: tl.constexpr):
    """[BLOCK_C, BLOCK_P] logits of classes c."""
    rows = image + c.to(tl.int64) * stride_c
    if COARSE:
        return load_coarse_logits(rows, places, inside, c, classes, counts, T)
    else:
        return load_logits(rows, places, inside, c, classes, counts, T)


@triton.jit
def _raised(largest, x):
    """The maximum with further logits x, a zero or finite value to subtract from them, and the factor of older sums."""
    raised = tl.maximum(largest, tl.max(x, axis=0))
    # Nothing but minus infinity so far: subtracting that would give NaN, though larger logits may follow.
    # (If none do, the softmax subtracts the maximum itself, and is NaN.)
    shift = tl.where(raised == float("-inf"), 0.0, raised)
    factor = tl.where(raised == largest, 1.0, exp_of_difference(largest - shift))
    return raised, shift, factor


@triton.jit(do_not_specialize=["chunks", "ignore_index"])
def dice_ce_loss_statistics_sweep_kernel(
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
    width,  # W; this and the next four are of coarse logits
    coarse_height,
    coarse_width,
    step_h: tl.float64,
    step_w: tl.float64,
    chunks,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    COARSE: tl.constexpr,
    ALIGN: tl.constexpr,
    T: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    n, first = image_of_program(chunks, BLOCK_P)
    lanes = tl.arange(0, BLOCK_P)
    lane_c = tl.arange(0, BLOCK_C)
    inside = lanes < pixels - first
    at = n * pixels + first + lanes
    label, bad = labels_at(target, at, inside, classes, ignore_index)
    counts = label >= 0
    image = logits + n * stride[0]
    grid = width, coarse_height, coarse_width, step_h, step_w
    places = _places(first + lanes, stride[2], grid, COARSE, ALIGN, T)
    largest = tl.full((BLOCK_P,), float("-inf"), T)
    total = tl.zeros((BLOCK_P,), T)
    target_logit = tl.zeros((BLOCK_P,), T)
    if confusion is not None:
        best = tl.full((BLOCK_P,), float("-inf"), T)
        winner = tl.zeros((BLOCK_P,), tl.int32)
    for start in range(0, classes, BLOCK_C):
        c = start + lane_c
        x = _logits(image, stride[1], c, classes, places, inside, counts, COARSE, T)
        largest, shift, factor = _raised(largest, x)
        total = total * factor + tl.sum(exp_of_difference(x - shift[None, :]), axis=0)
        target_logit += tl.sum(tl.where(c[:, None] == label[None, :], x, 0.0), axis=0)
        if confusion is not None:
            here = first_largest(x, c)
            value = tl.max(tl.where(x != x, float("inf"), x), axis=0)
            nan = tl.max((x != x).to(tl.int32), axis=0) > 0
            better = (best == best) & (nan | (value > best))
            winner = tl.where(better, here, winner)
            best = tl.where(better, tl.where(nan, float("nan"), value), best)
    log_total = tl.log(total)
    inverse = tl.where(counts, 1.0 / total, 0.0)

    own, share = pixel_weights(weight, pixel_weight, label, at, T)
    keep = (1.0 - tl.full((1,), label_smoothing, tl.float64)).to(T)
    loss = keep * share * (log_total - (target_logit - largest))
    if partial_overlap is not None or SMOOTHING:
        weighted = tl.zeros((BLOCK_P,), T)
        total_weight = tl.full((1,), 0.0, tl.float64)
        for start in range(0, classes, BLOCK_C):
            c = start + lane_c
            x = _logits(image, stride[1], c, classes, places, inside, counts, COARSE, T) - largest[None, :]
            if SMOOTHING:
                table = class_weights(weight, c, classes, T)
                weighted += tl.sum(tl.where((c < classes)[:, None], x * table[:, None], 0.0), axis=0)
                total_weight += tl.sum(class_weights(weight, c, classes, tl.float64), axis=0)
            if partial_overlap is not None:
                p = exp_of_difference(x) * inverse[None, :]
                p = tl.where(counts[None, :], p, 0.0)
                is_target = c[:, None] == label[None, :]
                to = partial_overlap + program * 3 * classes + c
                tl.store(to, tl.sum(tl.where(is_target, p, 0.0), axis=1), mask=c < classes)
                tl.store(to + classes, tl.sum(p * p if SQUARED else p, axis=1), mask=c < classes)
                tl.store(to + 2 * classes, tl.sum(is_target.to(T), axis=1), mask=c < classes)
        if SMOOTHING:
            spread = (tl.full((1,), label_smoothing, tl.float64) / classes).to(T)
            loss += spread * own * (total_weight.to(T) * log_total - weighted)
    loss = tl.where(counts, loss, 0.0)
    if ce_map is not None:
        tl.store(ce_map + at, loss, mask=inside)
    if confusion is not None:
        cell = label.to(tl.int64) * classes + winner
        tl.atomic_add(confusion + cell, tl.full((BLOCK_P,), 1, tl.int64), mask=counts, sem="relaxed")
    tl.store(partial_ce + 2 * program, tl.sum(loss, axis=0))
    tl.store(partial_ce + 2 * program + 1, tl.sum(share, axis=0))
    bad_first = tl.where(bad, lanes, 0x7FFFFFFF)
    store_bad_labels(partial_bad, program, bad.to(tl.int32), bad_first, first, n * pixels)


@triton.jit
def _first_sweep(
    image,
    stride_c,
    classes,
    places,
    inside,
    label,
    n,
    at,
    weights,
    grads,
    label_smoothing,
    COARSE: tl.constexpr,
    T: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of each pixel the largest logit, 1 / sum of exponentials, and u and q of `dice_ce_loss_backward_tile_kernel`.

    sum_k a_k p_k is rescaled like the sum of exponentials.
    """
    weight, pixel_weight = weights
    grad_overlap, grad_ce = grads
    lane_c = tl.arange(0, BLOCK_C)
    counts = label >= 0
    largest = tl.full(label.shape, float("-inf"), T)
    total = tl.zeros(label.shape, T)
    target_logit = tl.zeros(label.shape, T)
    dot = tl.zeros(label.shape, T)
    total_weight = tl.full((1,), 0.0, tl.float64)
    for start in range(0, classes, BLOCK_C):
        c = start + lane_c
        x = _logits(image, stride_c, c, classes, places, inside, counts, COARSE, T)
        largest, shift, factor = _raised(largest, x)
        e = exp_of_difference(x - shift[None, :])
        total = total * factor + tl.sum(e, axis=0)
        if SMOOTHING:
            total_weight += tl.sum(class_weights(weight, c, classes, tl.float64), axis=0)
        if grad_overlap is not None:
            g = tl.load(grad_overlap + (n * 3 + 1) * classes + c, mask=c < classes, other=0.0).to(T)[:, None]
            if SQUARED:
                dot = dot * factor * factor + tl.sum(2 * g * e * e, axis=0)
            else:
                dot = dot * factor + tl.sum(g * e, axis=0)
            target_logit += tl.sum(tl.where(c[:, None] == label[None, :], x, 0.0), axis=0)
    inverse = 1.0 / total

    own, share = pixel_weights(weight, pixel_weight, label, at, T)
    scale, spread = gradient_scales(grad_ce, label_smoothing, classes, T)
    q = -scale * share
    u = -q
    if SMOOTHING:
        u += spread * total_weight.to(T) * own
    if grad_overlap is not None:
        of_target = tl.load(grad_overlap + n * 3 * classes + label, mask=counts, other=0.0).to(T)
        of_target *= exp_of_difference(target_logit - largest) * inverse
        u -= dot * (inverse * inverse if SQUARED else inverse) + of_target
        q += of_target
    return largest, inverse, u, q


@triton.jit(do_not_specialize=["chunks", "ignore_index"])
def dice_ce_loss_backward_sweep_kernel(
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
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    T: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    """As `dice_ce_loss_backward_tile_kernel`."""
    n, first = image_of_program(chunks, BLOCK_P)
    lanes = tl.arange(0, BLOCK_P)
    lane_c = tl.arange(0, BLOCK_C)
    inside = lanes < pixels - first
    at = n * pixels + first + lanes
    label, _ = labels_at(target, at, inside, classes, ignore_index)
    counts = label >= 0
    image, places = logits + n * stride[0], (first + lanes) * stride[2]
    weights, grads = (weight, pixel_weight), (grad_overlap, grad_ce)
    largest, inverse, u, q = _first_sweep(
        image, stride[1], classes, places, inside, label, n, at, weights, grads, label_smoothing,
        False, T, SMOOTHING, SQUARED, BLOCK_C,
    )  # fmt: skip
    own, _ = pixel_weights(weight, pixel_weight, label, at, T)
    _, spread = gradient_scales(grad_ce, label_smoothing, classes, T)
    for start in range(0, classes, BLOCK_C):
        c = start + lane_c
        x = _logits(image, stride[1], c, classes, places, inside, counts, False, T)
        p = exp_of_difference(x - largest[None, :]) * inverse[None, :]
        if grad_overlap is not None:
            g = tl.load(grad_overlap + (n * 3 + 1) * classes + c, mask=c < classes, other=0.0).to(T)[:, None]
            grad = p * ((2 * g * p if SQUARED else g) + u[None, :])
        else:
            grad = p * u[None, :]
        grad += tl.where(c[:, None] == label[None, :], q[None, :], 0.0)
        if SMOOTHING:
            grad -= (spread * class_weights(weight, c, classes, T))[:, None] * own[None, :]
        grad = tl.where(counts[None, :], grad, 0.0)
        grad_rows = grad_logits + n * grad_stride[0] + c.to(tl.int64) * grad_stride[1]
        to = grad_rows[:, None] + ((first + lanes) * grad_stride[2])[None, :]
        mask = (c < classes)[:, None] & inside[None, :]
        tl.store(to, narrow(grad, grad_logits.dtype.element_ty, INTERPRETING), mask=mask)


@triton.jit(do_not_specialize=["chunks", "ignore_index"])
def dice_ce_loss_coarse_softmax_kernel(
    logits,  # [N, C, h, w] by strides
    target,  # [N, H, W]
    weight,  # float64 [C] or None
    pixel_weight,  # T [N, H, W] or None
    grad_overlap,  # float64 [N, 3, C] or None
    grad_ce,  # float64 [2] or None
    softmax,  # T [4, N, H, W]
    classes,
    pixels,  # H * W
    all_pixels,  # N * H * W
    stride,
    width,
    coarse_height,
    coarse_width,
    step_h: tl.float64,
    step_w: tl.float64,
    chunks,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    ALIGN: tl.constexpr,
    T: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """What the gather of coarse logits has to know of each pixel."""
    n, first = image_of_program(chunks, BLOCK_P)
    p = first + tl.arange(0, BLOCK_P)
    inside = p < pixels
    at = n * pixels + p
    label, _ = labels_at(target, at, inside, classes, ignore_index)
    image = logits + n * stride[0]
    grid = width, coarse_height, coarse_width, step_h, step_w
    places = _places(p, stride[2], grid, True, ALIGN, T)
    weights, grads = (weight, pixel_weight), (grad_overlap, grad_ce)
    largest, inverse, u, q = _first_sweep(
        image, stride[1], classes, places, inside, label, n, at, weights, grads, label_smoothing,
        True, T, SMOOTHING, SQUARED, BLOCK_C,
    )  # fmt: skip
    tl.store(softmax + at, largest, mask=inside)
    tl.store(softmax + all_pixels + at, inverse, mask=inside)
    tl.store(softmax + 2 * all_pixels + at, u, mask=inside)
    tl.store(softmax + 3 * all_pixels + at, q, mask=inside)
