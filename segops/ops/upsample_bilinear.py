"""upsample_bilinear2d, and upsample_cat, which writes it into a concatenation.

Both are linear: the derivative of the forward operator is the backward operator, and that one's is the forward
operator. The gradient of a concatenation is read where it is, as a slice of its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segops import backends
from segops._layout import empty_image
from segops._library import define_op, refuse_forward_mode
from segops.ops.upsample_arguments import check_image, output_geometry
from segops.recompute import remember
from segops.reference import upsample_bilinear as reference

_ORDERS = ("skip_first", "up_first")


def _fake_upsample(x: Tensor, height: int, width: int, align_corners: bool, scale_h: float, scale_w: float) -> Tensor:
    return empty_image(x, x.shape[1], height, width)


def _fake_cat(input: Tensor, skip: Tensor, align_corners: bool, skip_first: bool) -> Tensor:
    return empty_image(input, input.shape[1] + skip.shape[1], *skip.shape[2:])


def _save_geometry(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, _, *ctx.mapping = inputs
    ctx.size = x.shape[2:]


def _upsample_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.upsample_bilinear2d_backward(grad, *ctx.size, *ctx.mapping), None, None, None, None, None


def _upsample_backward_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ops.upsample_bilinear2d(grad, *ctx.size, *ctx.mapping), None, None, None, None, None


def _save_cat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, skip, ctx.align_corners, ctx.skip_first = inputs
    ctx.size, ctx.channels, ctx.more = input.shape[2:], input.shape[1], skip.shape[1]


def _cat_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_input = grad_skip = None
    if ctx.needs_input_grad[1]:
        up = grad.narrow(1, ctx.more if ctx.skip_first else 0, ctx.channels)
        grad_input = ops.upsample_bilinear2d_backward(up, *ctx.size, ctx.align_corners, 0.0, 0.0)
    if ctx.needs_input_grad[2]:
        grad_skip = grad.narrow(1, 0 if ctx.skip_first else ctx.channels, ctx.more)
    return grad_input, grad_skip, None, None


define_op(
    "upsample_bilinear2d(Tensor input, SymInt height, SymInt width, bool align_corners, float scale_h, float scale_w) "
    "-> Tensor",
    _fake_upsample,
    _save_geometry,
    _upsample_backward,
)
define_op(
    "upsample_bilinear2d_backward(Tensor grad_output, SymInt height, SymInt width, bool align_corners, float scale_h, "
    "float scale_w) -> Tensor",
    _fake_upsample,
    _save_geometry,
    _upsample_backward_backward,
)
define_op(
    "upsample_cat(Tensor input, Tensor skip, bool align_corners, bool skip_first) -> Tensor",
    _fake_cat,
    _save_cat,
    _cat_backward,
)


def upsample_bilinear2d(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    align_corners: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.interpolate` with ``mode="bilinear"`` and no antialiasing, up or down.

    Output row i lies at input row max((i + 1/2) * h / H - 1/2, 0), or i * (h - 1) / (H - 1) with `align_corners`,
    between two input rows, or on the last; the same for columns. Coordinates are float64, whatever the dtype: torch's
    are float32 for most, and differ by rounding. As in torch, 1 / scale_factor, where it is given, replaces h / H
    (on a CPU, where h is not H: an axis that keeps its size is read as it is).

    The gradient of an input is gathered: a sum, in an order that the sizes decide, over the outputs that read it. Twice
    differentiable. 16-bit images are interpolated and their gradients summed in float32, and rounded once.

    Args:
        input: [N, C, h, w]; float32, float64, bfloat16 or float16; contiguous, channels last, or a slice of one of them
            (anything else is copied once). N may be 0.
        size: H and W of the output, or one number for both.
        scale_factor: or the size of the output in those of the input, rounded down; one number or one per dimension.
        align_corners: whether the centers of the corner pixels, rather than the corners of the images, coincide.
        backend: see :mod:`segops.backends`.

    Returns:
        [N, C, H, W] in the dtype and the memory format of the input.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or range; both or neither of size and
            scale_factor.

    Examples:
        >>> segops.upsample_bilinear2d(torch.tensor([[[[0.0, 4.0]]]]), size=(1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    op = "upsample_bilinear2d"
    check_image(op, "input", input)
    _check_bool(op, "align_corners", align_corners)
    height, width, *scales = output_geometry(op, input.shape, size, scale_factor)
    chosen = backends.resolve(backend, input.device)
    if chosen == "reference":
        return reference.upsample_bilinear2d(input, height, width, align_corners, *scales)
    refuse_forward_mode(op, input)
    output: Tensor = backends.run(chosen, "upsample_bilinear2d", input, height, width, align_corners, *scales)
    return output


def upsample_cat(
    input: Tensor,
    skip: Tensor,
    align_corners: bool = False,
    order: str = "skip_first",
    *,
    backend: str | None = None,
) -> Tensor:
    """``torch.cat([skip, upsample_bilinear2d(input, skip.shape[2:])], 1)`` with one write of the result.

    This is how a decoder meets its skip connection (Ronneberger, Fischer, Brox 2015, with interpolation in place of the
    transposed convolution). Backward reads its part of the gradient where it is; that of `skip` is a view of it. Twice
    differentiable.

    Args:
        input: [N, C, h, w]; float32, float64, bfloat16 or float16; contiguous, channels last, or a slice of one of them
            (anything else is copied once).
        skip: [N, D, H, W] on the same device. Of two dtypes, the result has the one that torch promotes them to.
        align_corners: see :func:`upsample_bilinear2d`.
        order: "skip_first" or "up_first", along the channels.
        backend: see :mod:`segops.backends`.

    Returns:
        [N, C + D, H, W] in the memory format of `input`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; another order.

    Examples:
        >>> segops.upsample_cat(torch.zeros(1, 64, 16, 16), torch.zeros(1, 32, 31, 33)).shape
        torch.Size([1, 96, 31, 33])
    """
    op = "upsample_cat"
    check_image(op, "input", input)
    check_image(op, "skip", skip)
    _check_bool(op, "align_corners", align_corners)
    if not isinstance(order, str) or order not in _ORDERS:
        raise ValueError(f'segops.{op}: order must be "skip_first" or "up_first", got {order!r}')
    if skip.shape[0] != input.shape[0]:
        raise ValueError(
            f"segops.{op}: skip must have the batch of input, got {list(skip.shape)} for {list(input.shape)}"
        )
    if skip.device != input.device:
        raise ValueError(f"segops.{op}: skip must be on {input.device} like input, got {skip.device}")
    dtype = torch.promote_types(input.dtype, skip.dtype)
    input, skip = input.to(dtype), skip.to(dtype)
    chosen = backends.resolve(backend, input.device)
    if chosen == "reference":
        return reference.upsample_cat(input, skip, align_corners, order == "skip_first")
    refuse_forward_mode(op, input)
    refuse_forward_mode(op, skip)
    output: Tensor = backends.run(chosen, "upsample_cat", input, skip, align_corners, order == "skip_first")

    def again(input: Tensor, skip: Tensor) -> Tensor:
        return upsample_cat(input, skip, align_corners, order, backend=backend)

    return remember(output, again, input, skip)


def _check_bool(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"segops.{op}: {name} must be a bool, got {type(value).__name__}")
