"""upsample_argmax in Triton, with the arguments of the operator.

One program has the pixels [1, BLOCK_P] of one image and goes through the classes one by one, with the largest logits so
far in registers. The four coarse logits of a pixel are shared with its neighbours, by way of the first-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from segops._dtypes import accumulation_dtype
from segops.triton._runtime import computing_dtype, launch
from segops.triton.interpolate import bilinear_taps, blend, linear_step
from segops.triton.numeric import exp_of_difference


@triton.jit(do_not_specialize=["blocks"])
def upsample_argmax_kernel(
    logits,  # [N, C, h, w] by strides
    labels,  # [N, H, W]
    score,  # [N, H, W], if SCORE
    classes,
    height,
    width,
    out_height,
    out_width,
    stride,
    step_h: tl.float64,
    step_w: tl.float64,
    blocks,
    T: tl.constexpr,
    ALIGN: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    # 32 bits as far as they reach: a division of 64 is a subroutine.
    n = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    y, x = p // out_width, p % out_width
    inside = (y < out_height)[None, :]
    taps = bilinear_taps(y, x, height, width, stride[2], stride[3], step_h, step_w, ALIGN, T)

    image = logits + n * stride[0] + tl.arange(0, 1)
    best = blend(image, taps, inside, T)
    label = tl.zeros((1, BLOCK_P), tl.int32)
    plane = image
    for c in range(1, classes):
        plane += stride[1]
        value = blend(plane, taps, inside, T)
        # The first NaN stands as well.
        better = ((value > best) | (value != value)) & (best == best)
        best = tl.where(better, value, best)
        label = tl.where(better, c, label)
    to = (n * out_height * out_width + p)[None, :]
    tl.store(labels + to, label.to(labels.dtype.element_ty), mask=inside)
    if SCORE:
        total = tl.zeros((1, BLOCK_P), T)
        plane = image
        for _ in range(classes):
            value = blend(plane, taps, inside, T)
            total += exp_of_difference(value - best)
            plane += stride[1]
        tl.store(score + to, 1.0 / total, mask=inside)


def upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype, with_score: bool
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], height, width)
    labels = logits.new_empty(shape, dtype=dtype)
    score = logits.new_empty(shape if with_score else (0,), dtype=accumulation_dtype(logits))
    block = 128
    if height * width > (1 << 31) - block:
        raise RuntimeError(f"segops.upsample_argmax: {height} x {width} pixels are too many for the Triton kernel")
    blocks = triton.cdiv(height * width, block)
    launch(
        upsample_argmax_kernel,
        logits.shape[0] * blocks,
        logits,
        logits,
        labels,
        score,
        *logits.shape[1:],
        height,
        width,
        logits.stride(),
        linear_step(logits.shape[2], height, align_corners),
        linear_step(logits.shape[3], width, align_corners),
        blocks,
        T=computing_dtype(logits),
        ALIGN=align_corners,
        SCORE=with_score,
        BLOCK_P=block,
        num_warps=4,
    )
    return labels, score
