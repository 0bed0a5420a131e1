"""dice_bce_loss of coarse logits: the gather that adds up, for each of them, the gradients of the pixels that read it.

Channels are independent, so a pixel's gradient follows from its interpolated logit alone, and nothing is kept from a
kernel before: each of the up to four coarse logits of a pixel computes its gradient anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.dice_bce_loss_tile import (
    gradient,
    labels_at,
    offsets,
    overlap_slopes,
    positive_weights,
    weights_at,
)
from segops.triton.interpolate import bilinear_taps, blend, readers, weight_of
from segops.triton.numeric import narrow


@triton.jit(do_not_specialize=["chunks"])
def dice_bce_loss_coarse_gather_kernel(
    logits,  # [N, C, h, w] by strides
    target,  # [N, C, H * W] by strides, as the next
    pixel_weight,  # T, or None
    pos_weight,  # float64 [C] or None
    grad_overlap,  # float64 [N, 3, C] or None
    grad_bce,  # float64 [2] or None
    grad_logits,  # [N, C, h, w] by strides
    channels,
    height,
    width,
    coarse_height,
    coarse_width,
    stride,
    target_stride,
    weight_stride,
    grad_stride,
    step_h: tl.float64,
    step_w: tl.float64,
    chunks,
    ignore: tl.float64,
    focal_gamma: tl.float64,
    ALIGN: tl.constexpr,
    T: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    SLACK: tl.constexpr,
    FOCAL: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    """BLOCK_C channels of BLOCK_P coarse pixels of an image, each with BLOCK_X neighbouring pixels at a time."""
    blocks_c = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    n = (program // (chunks * blocks_c)).to(tl.int64)
    c = program // chunks % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = (program % chunks).to(tl.int64) * BLOCK_P
    lanes = tl.arange(0, BLOCK_P * BLOCK_X)
    is_channel = (c < channels)[:, None]
    along = (begin % coarse_width).to(tl.int32) + lanes // BLOCK_X
    row, column = (begin // coarse_width).to(tl.int32) + along // coarse_width, along % coarse_width
    first_y, end_y = readers(row, coarse_height, height, step_h, ALIGN)
    first_x, end_x = readers(column, coarse_width, width, step_w, ALIGN)
    end_y = tl.where(row < coarse_height, end_y, 0)

    rows = logits + n * stride[0] + c.to(tl.int64) * stride[1]
    q = positive_weights(pos_weight, c, channels, T)
    of_i, of_p = overlap_slopes(grad_overlap, n, c, channels, T)
    of_bce = tl.full((1, 1), 0.0, tl.float64)
    if grad_bce is not None:
        of_bce += tl.load(grad_bce)
    line = stride[2] * coarse_width
    total = tl.zeros((BLOCK_C, BLOCK_P * BLOCK_X), T)
    for vertical in range(tl.max(end_y - first_y, axis=0)):
        y = first_y + vertical
        for horizontal in range(0, tl.max(end_x - first_x, axis=0), BLOCK_X):
            x = first_x + horizontal + lanes % BLOCK_X
            inside = is_channel & ((y < end_y) & (x < end_x))[None, :]
            pixel = y.to(tl.int64) * width + x
            at = offsets(n, c, pixel, target_stride)
            t, counts, _ = labels_at(target, at, inside, ignore, T, HAS_IGNORE, SLACK)
            own = weights_at(pixel_weight, offsets(n, c, pixel, weight_stride), counts, T)
            taps = bilinear_taps(y, x, coarse_height, coarse_width, line, stride[2], step_h, step_w, ALIGN, T)
            logit = blend(rows, taps, inside, T)
            grad = gradient(logit, t, own, q, of_bce.to(T), of_i, of_p, focal_gamma, T, FOCAL, SQUARED)
            share = weight_of(row, y, coarse_height, step_h, ALIGN, T)
            share *= weight_of(column, x, coarse_width, step_w, ALIGN, T)
            total += tl.where(counts, grad, 0.0) * share[None, :]
    own_pixel = begin + tl.arange(0, BLOCK_P)
    at = offsets(n, c, own_pixel, grad_stride)
    mask = is_channel & (own_pixel < coarse_height * coarse_width)[None, :]
    total = tl.sum(tl.reshape(total, (BLOCK_C, BLOCK_P, BLOCK_X)), axis=2)
    tl.store(grad_logits + at, narrow(total, grad_logits.dtype.element_ty, INTERPRETING), mask=mask)
