"""Upsampling as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segops._dtypes import FLOATING
from segops.ops.upsample_bilinear import upsample_bilinear2d, upsample_cat
from segops.ops.upsample_nearest import bed_of_nails2d, upsample_nearest2d
from segops.recompute import remember


class Upsample(nn.Upsample):
    """:class:`torch.nn.Upsample` on the operators of segops where there is one.

    That is for ``mode="nearest"`` and ``mode="bilinear"`` on floating-point images [N, C, h, w]:
    :func:`segops.upsample_nearest2d`, :func:`segops.upsample_bilinear2d`. Everything else falls through to
    :func:`torch.nn.functional.interpolate`: other modes, 3-D and 5-D input, integers.

    Args: those of :class:`torch.nn.Upsample`, with the same defaults; also its representation and its (empty) state.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.applies(input):
            return super().forward(input)
        size, scale_factor = self.size, self.scale_factor
        if self.recompute_scale_factor:
            if size is not None:
                raise ValueError("recompute_scale_factor is not meaningful with an explicit size.")
            size, scale_factor = self._recomputed(input), None
        if self.mode == "bilinear":
            return upsample_bilinear2d(input, size, scale_factor, bool(self.align_corners))
        return upsample_nearest2d(input, size, scale_factor)

    def applies(self, input: Tensor) -> bool:
        """Whether segops has an operator for this mode and this input."""
        ours = self.mode == "bilinear" or (self.mode == "nearest" and self.align_corners is None)
        return ours and input.ndim == 4 and input.dtype in FLOATING

    def _recomputed(self, input: Tensor) -> tuple[int, int]:
        """The size alone decides where outputs are read."""
        scale: Any = self.scale_factor
        scale_h, scale_w = scale if isinstance(scale, tuple) else (scale, scale)
        return torch.sym_int(input.shape[2] * scale_h), torch.sym_int(input.shape[3] * scale_w)


class UpsamplingNearest2d(Upsample):
    """:class:`torch.nn.UpsamplingNearest2d` on :func:`segops.upsample_nearest2d`.

    Args: those of :class:`torch.nn.UpsamplingNearest2d`, with the same defaults.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(size, scale_factor, mode="nearest")


class UpsamplingBilinear2d(Upsample):
    """:class:`torch.nn.UpsamplingBilinear2d` on :func:`segops.upsample_bilinear2d`: the corners coincide.

    Args: those of :class:`torch.nn.UpsamplingBilinear2d`, with the same defaults.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(size, scale_factor, mode="bilinear", align_corners=True)


class UpsampleCat(nn.Module):
    """:func:`segops.upsample_cat` with its options held by a module: what a decoder does with a skip connection.

    Shape:
        input [N, C, h, w] and skip [N, D, H, W] to [N, C + D, H, W].
    """

    def __init__(self, align_corners: bool = False, order: str = "skip_first") -> None:
        super().__init__()
        self.align_corners = align_corners
        self.order = order

    def forward(self, input: Tensor, skip: Tensor) -> Tensor:
        return upsample_cat(input, skip, self.align_corners, self.order)

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}, order={self.order!r}"


class Cat(nn.Module):
    """:func:`torch.cat` along the channels; a convolution that reads it keeps the parts for backward, not the result.

    In eager mode the gradients of the parts have memory of their own, where those of torch are views of one image.

    Shape:
        a list of [N, C_i, *spatial] to [N, sum of C_i, *spatial].
    """

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        tensors = list(parts)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return torch.cat(tensors, 1)
        return remember(_Cat.apply(*tensors), lambda *again: torch.cat(again, 1), *tensors)


class _Cat(torch.autograd.Function):
    """:func:`torch.cat` with gradients of their own memory.

    torch's are views, so that the gradient of a skip connection, which is needed last of all, keeps that of everything
    it was concatenated with.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.channels = [part.shape[1] for part in parts]
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = zip(grad.split(ctx.channels, 1), ctx.needs_input_grad, strict=True)
        return tuple(part.clone() if needed else None for part, needed in parts)


class BedOfNails2d(nn.Module):
    """:func:`segops.bed_of_nails2d` with its scale held by a module.

    Shape:
        [N, C, h, w] to [N, C, h * scale, w * scale].
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return bed_of_nails2d(input, self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
