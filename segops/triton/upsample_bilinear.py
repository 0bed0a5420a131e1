"""upsample_bilinear2d, its derivative and upsample_cat in Triton, with the arguments of the operators.

One program writes [BLOCK_C, BLOCK_P]: channels of neighbouring pixels of one image, whichever of the two lie side by
side in memory. Backward gathers: each input adds up the outputs that read it, row by row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from segops._layout import empty_image
from segops.triton._runtime import INTERPRETING, computing_dtype, launch
from segops.triton.interpolate import bilinear_taps, blend, lanes_per_input, linear_step, readers, weight_of
from segops.triton.numeric import narrow, widen


@triton.jit
def tile_of_program(blocks_c, blocks_p, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's image, channels and pixels, in 64 bits for the offsets made of them."""
    program = tl.program_id(0).to(tl.int64)
    p = program % blocks_p * BLOCK_P + tl.arange(0, BLOCK_P)
    rest = program // blocks_p
    c = rest % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    return rest // blocks_c, c, p


@triton.jit
def _pointers(data, n, c, y, x, stride):
    """[BLOCK_C, BLOCK_P], with offsets in 64 bits: what they are made of has them."""
    return (data + n * stride[0] + c * stride[1])[:, None] + (y * stride[2] + x * stride[3])[None, :]


@triton.jit(do_not_specialize=["blocks_c", "blocks_p"])
def upsample_bilinear_forward_kernel(
    input,  # [N, C, h, w] by strides
    output,  # [N, C, H, W] by strides
    channels,
    height,
    width,
    out_height,
    out_width,
    stride,
    out_stride,
    step_h: tl.float64,
    step_w: tl.float64,
    blocks_c,
    blocks_p,
    T: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    n, c, p = tile_of_program(blocks_c, blocks_p, BLOCK_C, BLOCK_P)
    y, x = p // out_width, p % out_width
    taps = bilinear_taps(y, x, height, width, stride[2], stride[3], step_h, step_w, ALIGN, T)
    mask = (c < channels)[:, None] & (y < out_height)[None, :]
    value = blend(input + n * stride[0] + c * stride[1], taps, mask, T)
    to = _pointers(output, n, c, y, x, out_stride)
    tl.store(to, narrow(value, output.dtype.element_ty, INTERPRETING), mask=mask)


@triton.jit(do_not_specialize=["blocks_c", "blocks_p"])
def upsample_bilinear_backward_kernel(
    grad_output,  # [N, C, H, W] by strides
    grad_input,  # [N, C, h, w] by strides
    channels,
    height,
    width,
    out_height,
    out_width,
    out_stride,
    stride,
    step_h: tl.float64,
    step_w: tl.float64,
    blocks_c,
    blocks_p,
    T: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    INTERPRETING: tl.constexpr,
):
    """Each of the BLOCK_P inputs of a plane reads BLOCK_X neighbouring outputs at a time."""
    n, c, p = tile_of_program(blocks_c, blocks_p, BLOCK_C, BLOCK_P)
    lanes = tl.arange(0, BLOCK_P * BLOCK_X)
    input = tl.min(p, axis=0) + lanes // BLOCK_X
    row, column = (input // width).to(tl.int32), (input % width).to(tl.int32)
    first_y, end_y = readers(row, height, out_height, step_h, ALIGN)
    first_x, end_x = readers(column, width, out_width, step_w, ALIGN)
    end_y = tl.where(row < height, end_y, 0)
    total = tl.zeros((BLOCK_C, BLOCK_P * BLOCK_X), T)
    for down in range(tl.max(end_y - first_y, axis=0)):
        y = first_y + down
        weight_y = weight_of(row, y, height, step_h, ALIGN, T)
        for across in range(0, tl.max(end_x - first_x, axis=0), BLOCK_X):
            x = first_x + across + lanes % BLOCK_X
            weight_x = weight_of(column, x, width, step_w, ALIGN, T)
            mask = (c < channels)[:, None] & ((y < end_y) & (x < end_x))[None, :]
            at = _pointers(grad_output, n, c, y.to(tl.int64), x.to(tl.int64), out_stride)
            grad = widen(tl.load(at, mask=mask, other=0.0), T)
            total += (weight_y * weight_x)[None, :] * grad
    to = _pointers(grad_input, n, c, p // width, p % width, stride)
    mask = (c < channels)[:, None] & (p < height * width)[None, :]
    total = tl.sum(tl.reshape(total, (BLOCK_C, BLOCK_P, BLOCK_X)), axis=2)
    tl.store(to, narrow(total, grad_input.dtype.element_ty, INTERPRETING), mask=mask)


@triton.jit(do_not_specialize=["blocks_c", "blocks_p"])
def upsample_cat_copy_kernel(
    input,  # [N, C, H, W] by strides
    output,  # [N, C, H, W] by strides
    channels,
    height,
    width,
    stride,
    out_stride,
    blocks_c,
    blocks_p,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, c, p = tile_of_program(blocks_c, blocks_p, BLOCK_C, BLOCK_P)
    y, x = p // width, p % width
    mask = (c < channels)[:, None] & (y < height)[None, :]
    value = tl.load(_pointers(input, n, c, y, x, stride), mask=mask, other=0.0)
    tl.store(_pointers(output, n, c, y, x, out_stride), value, mask=mask)


def upsample_bilinear2d(
    input: Tensor, height: int, width: int, align_corners: bool, scale_h: float, scale_w: float
) -> Tensor:
    """``segops_triton::upsample_bilinear2d``."""
    output = empty_image(input, input.shape[1], height, width)
    _interpolate(input, output, align_corners, scale_h, scale_w)
    return output


def upsample_bilinear2d_backward(
    grad_output: Tensor, height: int, width: int, align_corners: bool, scale_h: float, scale_w: float
) -> Tensor:
    """``segops_triton::upsample_bilinear2d_backward``."""
    grad_input = empty_image(grad_output, grad_output.shape[1], height, width)
    _launch(
        upsample_bilinear_backward_kernel,
        grad_input,
        *grad_input.shape[1:],
        *grad_output.shape[2:],
        grad_output.stride(),
        grad_input.stride(),
        linear_step(height, grad_output.shape[2], align_corners, scale_h),
        linear_step(width, grad_output.shape[3], align_corners, scale_w),
        tensors=(grad_output, grad_input),
        block_x=lanes_per_input(width, grad_output.shape[3], 16),
        T=computing_dtype(grad_output),
        ALIGN=align_corners,
        INTERPRETING=INTERPRETING,
    )
    return grad_input


def upsample_cat(input: Tensor, skip: Tensor, align_corners: bool, skip_first: bool) -> Tensor:
    """``segops_triton::upsample_cat``."""
    (up, more), (height, width) = (input.shape[1], skip.shape[1]), skip.shape[2:]
    output = empty_image(input, up + more, height, width)
    _interpolate(input, output.narrow(1, more if skip_first else 0, up), align_corners, 0.0, 0.0)
    part = output.narrow(1, 0 if skip_first else up, more)
    _launch(upsample_cat_copy_kernel, part, *part.shape[1:], skip.stride(), part.stride(), tensors=(skip, part))
    return output


def _interpolate(input: Tensor, output: Tensor, align_corners: bool, scale_h: float, scale_w: float) -> None:
    _launch(
        upsample_bilinear_forward_kernel,
        output,
        *input.shape[1:],
        *output.shape[2:],
        input.stride(),
        output.stride(),
        linear_step(input.shape[2], output.shape[2], align_corners, scale_h),
        linear_step(input.shape[3], output.shape[3], align_corners, scale_w),
        tensors=(input, output),
        T=computing_dtype(input),
        ALIGN=align_corners,
        INTERPRETING=INTERPRETING,
    )


def _launch(
    kernel: object,
    written: Tensor,
    *numbers: float | tuple[int, ...],
    tensors: tuple[Tensor, Tensor],
    block_x: int | None = None,
    **constants: object,
) -> None:
    """One program for each tile of what is written. Lanes go along what is dense in it: pixels or channels."""
    n, channels, height, width = written.shape
    lanes = 1024 // (block_x or 1)
    if written.stride(3) == 1:
        block_p = min(lanes, triton.next_power_of_2(height * width))
        block_c = min(lanes // block_p, triton.next_power_of_2(channels))
    else:
        block_c = min(64, triton.next_power_of_2(channels))
        block_p = lanes // block_c
    blocks_c, blocks_p = -(-channels // block_c), -(-height * width // block_p)
    launch(
        kernel,
        n * blocks_c * blocks_p,
        written,
        *tensors,
        *numbers,
        blocks_c,
        blocks_p,
        **constants,
        **({"BLOCK_X": block_x} if block_x else {}),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=4,
    )
