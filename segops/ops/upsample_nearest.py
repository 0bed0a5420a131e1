"""upsample_nearest2d and bed_of_nails2d: each output is one input, or zero.

Both are linear: the derivative of a forward operator is its backward operator, and that one's is the forward operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from segops import backends
from segops._layout import empty_image
from segops._library import define_op, refuse_forward_mode
from segops.ops.upsample_arguments import SIZES, check_image, output_geometry
from segops.reference import upsample_nearest as reference


def _fake_upsample(x: Tensor, height: int, width: int, scale_h: float, scale_w: float) -> Tensor:
    return empty_image(x, x.shape[1], height, width)


def _fake_nails(input: Tensor, scale: int) -> Tensor:
    return empty_image(input, input.shape[1], input.shape[2] * scale, input.shape[3] * scale)


def _fake_nails_backward(grad_output: Tensor, scale: int) -> Tensor:
    return empty_image(grad_output, grad_output.shape[1], grad_output.shape[2] // scale, grad_output.shape[3] // scale)


def _save_geometry(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, _, ctx.scale_h, ctx.scale_w = inputs
    ctx.size = x.shape[2:]


def _upsample_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.upsample_nearest2d_backward(grad, *ctx.size, ctx.scale_h, ctx.scale_w), None, None, None, None


def _upsample_backward_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.upsample_nearest2d(grad, *ctx.size, ctx.scale_h, ctx.scale_w), None, None, None, None


def _save_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[1]


def _nails_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.bed_of_nails2d_backward(grad, ctx.scale), None


def _nails_backward_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.bed_of_nails2d(grad, ctx.scale), None


define_op(
    "upsample_nearest2d(Tensor input, SymInt height, SymInt width, float scale_h, float scale_w) -> Tensor",
    _fake_upsample,
    _save_geometry,
    _upsample_backward,
)
define_op(
    "upsample_nearest2d_backward(Tensor grad_output, SymInt height, SymInt width, float scale_h, float scale_w) "
    "-> Tensor",
    _fake_upsample,
    _save_geometry,
    _upsample_backward_backward,
)
define_op("bed_of_nails2d(Tensor input, int scale) -> Tensor", _fake_nails, _save_scale, _nails_backward)
define_op(
    "bed_of_nails2d_backward(Tensor grad_output, int scale) -> Tensor",
    _fake_nails_backward,
    _save_scale,
    _nails_backward_backward,
)


def upsample_nearest2d(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.interpolate` with ``mode="nearest"``, up or down.

    Output row i is input row min(floor(i * step), h - 1), with step = h / H, or 1 / scale_factor where that is given;
    the same for columns. As in torch, step and product are float32, so that some sources are one below the floor of the
    exact ratio. (torch itself computes them in float64 for contiguous float64 images, and differs there at a few pairs
    of sizes, such as 45 to 129. And where another scale_factor than 1 or 2 gives just the size or twice the size, its
    kernels disagree: here, as in torch for channels last, such an axis is copied or doubled. Every dtype and layout has
    the same sources.)

    The gradient of an input is the sum over the outputs that are it, in row-major order, accumulated in float32
    (float64 for float64). Twice differentiable.

    Args:
        input: [N, C, h, w]; float32, float64, bfloat16 or float16; contiguous, channels last, or a slice of one of them
            (anything else is copied once). N may be 0.
        size: H and W of the output, or one number for both.
        scale_factor: or the size of the output in those of the input, rounded down; one number or one per dimension.
        backend: see :mod:`segops.backends`.

    Returns:
        [N, C, H, W] in the dtype and the memory format of the input, each element an input bit for bit.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or range; both or neither of size and
            scale_factor.

    Examples:
        >>> segops.upsample_nearest2d(torch.tensor([[[[1.0, 2.0]]]]), scale_factor=(1, 2))
        tensor([[[[1., 1., 2., 2.]]]])
    """
    check_image("upsample_nearest2d", "input", input)
    geometry = output_geometry("upsample_nearest2d", input.shape, size, scale_factor)
    chosen = backends.resolve(backend, input.device)
    if chosen == "reference":
        return reference.upsample_nearest2d(_accumulated(input), *geometry).to(input.dtype)
    refuse_forward_mode("upsample_nearest2d", input)
    output: Tensor = backends.run(chosen, "upsample_nearest2d", input, *geometry)
    return output


def bed_of_nails2d(input: Tensor, scale: int, *, backend: str | None = None) -> Tensor:
    """The input at multiples of `scale`, zeros between: ``output[..., ::scale, ::scale] = input``.

    This is the unpooling that puts each value into the top left corner of its cell (a transposed convolution with one
    tap does the same), with one write of the output. Twice differentiable.

    Args:
        input: [N, C, h, w]; float32, float64, bfloat16 or float16; contiguous, channels last, or a slice of one of them
            (anything else is copied once). N may be 0.
        scale: at least 1.
        backend: see :mod:`segops.backends`.

    Returns:
        [N, C, h * scale, w * scale] in the dtype and the memory format of the input.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or range.

    Examples:
        >>> segops.bed_of_nails2d(torch.tensor([[[[1.0, 2.0]]]]), 2)
        tensor([[[[1., 0., 2., 0.],
                  [0., 0., 0., 0.]]]])
    """
    check_image("bed_of_nails2d", "input", input)
    if not isinstance(scale, int) or isinstance(scale, bool):
        raise TypeError(f"segops.bed_of_nails2d: scale must be an int, got {scale!r}")
    if not 1 <= scale < SIZES:
        raise ValueError(f"segops.bed_of_nails2d: scale must be at least 1 and below 2**31, got {scale}")
    chosen = backends.resolve(backend, input.device)
    if chosen == "reference":
        return reference.bed_of_nails2d(input, scale)
    refuse_forward_mode("bed_of_nails2d", input)
    output: Tensor = backends.run(chosen, "bed_of_nails2d", input, scale)
    return output


def _accumulated(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x
