"""dice_ce_loss of coarse logits: reading their interpolation, and the gather that adds up what its gradient is to them.

Interpolated logits exist in registers only. The gather visits the pixels that read a coarse logit in a fixed order, and
makes their gradients anew from four numbers a pixel, which the kernel before it left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segops.triton.dice_ce_loss_tile import class_weights, gradient_scales, image_of_program, labels_at, pixel_weights
from segops.triton.interpolate import bilinear_taps, blend, readers, weight_of
from segops.triton.numeric import exp_of_difference, narrow


@triton.jit
def load_coarse_logits(rows, taps, inside, c, classes, counts, T: tl.constexpr):
    """What `load_logits` gives for logits of full size."""
    is_class = (c < classes)[:, None]
    x = blend(rows, taps, is_class & inside[None, :], T)
    return tl.where(counts[None, :], tl.where(is_class, x, float("-inf")), 0.0)


@triton.jit(do_not_specialize=["chunks", "ignore_index"])
def dice_ce_loss_coarse_gather_kernel(
    logits,  # [N, C, h, w] by strides
    target,  # [N, H, W]
    weight,  # float64 [C] or None
    pixel_weight,  # T [N, H, W] or None
    grad_overlap,  # float64 [N, 3, C] or None
    grad_ce,  # float64 [2] or None
    softmax,  # T [4, N, H, W]: largest logit, inverse sum of exponentials, and the u and q of the gradient
    grad_logits,  # [N, C, h, w] by strides
    classes,
    height,
    width,
    coarse_height,
    coarse_width,
    all_pixels,  # N * H * W
    stride,
    grad_stride,
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
    BLOCK_X: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    """BLOCK_C classes of BLOCK_P coarse pixels of an image, each with BLOCK_X neighbouring pixels at a time.

    The gradient of such a pixel is that of the plain kernels.
    """
    blocks_c = tl.cdiv(classes, BLOCK_C)
    n, chunk = image_of_program(chunks * blocks_c, 1)
    c = (chunk % blocks_c).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = tl.arange(0, BLOCK_P * BLOCK_X)
    coarse = chunk // blocks_c * BLOCK_P + lanes // BLOCK_X
    is_class = (c < classes)[:, None]
    row, column = (coarse // coarse_width).to(tl.int32), (coarse % coarse_width).to(tl.int32)
    first_y, end_y = readers(row, coarse_height, height, step_h, ALIGN)
    first_x, end_x = readers(column, coarse_width, width, step_w, ALIGN)
    end_y = tl.where(row < coarse_height, end_y, 0)

    rows = logits + n * stride[0] + c.to(tl.int64) * stride[1]
    if SMOOTHING:
        _, spread = gradient_scales(grad_ce, label_smoothing, classes, T)
        table = spread * class_weights(weight, c, classes, T)
    if grad_overlap is not None:
        g = tl.load(grad_overlap + (n * 3 + 1) * classes + c, mask=c < classes, other=0.0).to(T)[:, None]
        if SQUARED:
            g *= 2
    line = stride[2] * coarse_width
    total = tl.zeros((BLOCK_C, BLOCK_P * BLOCK_X), T)
    for vertical in range(tl.max(end_y - first_y, axis=0)):
        y = first_y + vertical
        for horizontal in range(0, tl.max(end_x - first_x, axis=0), BLOCK_X):
            x = first_x + horizontal + lanes % BLOCK_X
            inside = (y < end_y) & (x < end_x)
            at = (n * height + y) * width + x
            label, _ = labels_at(target, at, inside, classes, ignore_index)
            counts = label >= 0
            taps = bilinear_taps(y, x, coarse_height, coarse_width, line, stride[2], step_h, step_w, ALIGN, T)
            logit = load_coarse_logits(rows, taps, inside, c, classes, counts, T)
            largest = tl.load(softmax + at, mask=inside, other=0.0)
            inverse = tl.load(softmax + all_pixels + at, mask=inside, other=0.0)
            u = tl.load(softmax + 2 * all_pixels + at, mask=inside, other=0.0)
            q = tl.load(softmax + 3 * all_pixels + at, mask=inside, other=0.0)
            p = exp_of_difference(logit - largest[None, :]) * inverse[None, :]
            if grad_overlap is not None:
                grad = p * ((g * p if SQUARED else g) + u[None, :])
            else:
                grad = p * u[None, :]
            grad += tl.where(c[:, None] == label[None, :], q[None, :], 0.0)
            if SMOOTHING:
                own, _ = pixel_weights(weight, pixel_weight, label, at, T)
                grad -= table[:, None] * own[None, :]
            share = weight_of(row, y, coarse_height, step_h, ALIGN, T)
            share *= weight_of(column, x, coarse_width, step_w, ALIGN, T)
            total += tl.where(counts[None, :] & is_class, grad, 0.0) * share[None, :]
    own = chunk // blocks_c * BLOCK_P + tl.arange(0, BLOCK_P)
    to = (grad_logits + n * grad_stride[0] + c.to(tl.int64) * grad_stride[1])[:, None] + (own * grad_stride[2])[None, :]
    mask = is_class & (own < coarse_height * coarse_width)[None, :]
    total = tl.sum(tl.reshape(total, (BLOCK_C, BLOCK_P, BLOCK_X)), axis=2)
    tl.store(to, narrow(total, grad_logits.dtype.element_ty, INTERPRETING), mask=mask)
