"""Convolutions as modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segops.nn.norm_act import activated, folded, norm_act, trains_lean
from segops.ops.dilated_conv import dilated_conv2d, prepack
from segops.ops.dilated_conv_arguments import check_precision
from segops.recompute import is_remembered, kept, remember

Size = int | tuple[int, int]


class DilatedConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on :func:`segops.dilated_conv2d`.

    Args: those of :class:`torch.nn.Conv2d`, with the same defaults; its representation and its state. And, by name,
        precision: "default" or "fast", see :func:`segops.dilated_conv2d`.

    Shape:
        [N, C_in, H, W] or [C_in, H, W] to [N, C_out, H', W'] or [C_out, H', W'].
    """

    _prepacked: Tensor | None = None

    def __init__(self, *args: Any, precision: str = "default", **kwargs: Any) -> None:
        check_precision(precision)
        super().__init__(*args, **kwargs)
        self.precision = precision

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.convolve(input, weight, bias)

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, **epilogue: Any) -> Tensor:
        """The convolution of this layer's options, and what `epilogue` says of what follows it."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        batch = input if input.ndim == 4 else input.unsqueeze(0)
        options = (self.stride, padding, self.dilation, self.groups)
        ready = self._prepacked if weight is self.weight and not torch.compiler.is_exporting() else None
        output = dilated_conv2d(batch, weight, bias, *options, precision=self.precision, prepacked=ready, **epilogue)
        return output if input.ndim == 4 else output.squeeze(0)

    def prepack(self) -> bool:
        """Keep the weight as inference on a CPU needs it beside the weight; see :func:`segops.nn.prepack`.

        Returns:
            Whether there is anything to keep: a 3x3 convolution of stride 1 and one group on a CPU.
        """
        applies = self.kernel_size == (3, 3) and self.stride == (1, 1) and self.groups == 1
        self._prepacked = prepack(self.weight, self.precision) if applies else None
        return self._prepacked is not None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._prepacked = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._prepacked = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and other processes, pack for themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_prepacked"}


class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d`, which in training keeps of its input what that is computed from.

    See :mod:`segops.recompute`; the convolution is PyTorch's. Where that saves memory, it is differentiable once.

    Args: those of :class:`torch.nn.ConvTranspose2d`, with the same defaults; its representation and its state.

    Shape:
        [N, C_in, H, W] or [C_in, H, W] to [N, C_out, H', W'] or [C_out, H', W'].
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not is_remembered(input):
            return super().forward(input, output_size)
        geometry: list[Any] = [
            list(of_axes) for of_axes in (self.stride, self.padding, self.kernel_size, self.dilation)
        ]
        stride, padding, kernel_size, dilation = geometry
        extra = self._output_padding(input, output_size, stride, padding, kernel_size, 2, dilation)
        options = (stride, padding, dilation, True, extra, self.groups)
        tensors = [t for t in (input, self.weight, self.bias) if t is not None]
        kind = input.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            tensors = [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]

        def convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return torch.ops.aten.convolution(input, weight, bias, *options)

        output: Tensor = _Convolution.apply(options, *tensors)
        return remember(output, convolution, *tensors)


class _Convolution(torch.autograd.Function):
    """PyTorch's convolution of given options, with an input that is not kept if it is remembered."""

    @staticmethod
    def forward(
        ctx: Any, options: tuple[Any, ...], input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        ctx.rebuild_input, parts = kept(input)
        ctx.options, ctx.bias_sizes = options, None if bias is None else list(bias.shape)
        ctx.save_for_backward(weight, *parts)
        return torch.ops.aten.convolution(input, weight, bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, *parts = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[1:], False][:3]  # no bias, no number for it
        grads = torch.ops.aten.convolution_backward(
            grad, ctx.rebuild_input(*parts), weight, ctx.bias_sizes, *ctx.options, needs
        )
        return None, *grads[: len(ctx.needs_input_grad) - 1]


class ConvNormAct(nn.Module):
    """A convolution, :class:`torch.nn.BatchNorm2d` and an activation: ``act(norm(conv(input)))``.

    In training it is these three, but of each layer backward keeps one image, what the convolution gave: batch norm and
    activation are computed once more where they are needed, by this layer and by the convolution that reads it
    (:mod:`segops.recompute`). A network's first convolution, of few channels, is computed once more, too. In eval mode
    it is one operator: the running statistics become the scale and the shift of :func:`segops.dilated_conv2d`.
    Differentiable once.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: of :class:`torch.nn.Conv2d`.
        activation: None, "relu", "leaky_relu" (slope 0.01), "silu" or "sigmoid".
        eps, momentum: of :class:`torch.nn.BatchNorm2d`.
        bias: give the convolution one, which the norm makes superfluous but some published networks have.
        precision: of :func:`segops.dilated_conv2d`.

    Shape:
        [N, C_in, H, W] to [N, C_out, H', W']. ``forward(input, residual)`` adds `residual` of that shape before the
        activation, as the last step of a residual block does; in eval mode still in the one operator.
    """

    ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "sigmoid")
    #: Of an output, up to which the convolution is computed again rather than kept: a 3x3 one of three channels has 27.
    FEW_PRODUCTS = 32

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        activation: str | None = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        bias: bool = False,
        precision: str = "default",
    ) -> None:
        super().__init__()
        if activation not in self.ACTIVATIONS:
            raise ValueError(f"segops.nn.ConvNormAct: activation must be one of {self.ACTIVATIONS}, got {activation!r}")
        size = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.conv = DilatedConv2d(*size, bias=bias, precision=precision)
        self.norm = nn.BatchNorm2d(out_channels, eps, momentum)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.norm.training:
            return self._folded(input, residual)
        convolved = self.conv(input)
        if residual is not None:
            return activated(self.norm(convolved) + residual, self.activation)
        if trains_lean(self.norm, convolved):
            return norm_act(self._remembered(convolved, input), self.norm, self.activation)
        return activated(self.norm(convolved), self.activation)

    def _remembered(self, convolved: Tensor, input: Tensor) -> Tensor:
        """What the convolution gave, with it how, where to convolve again takes no more time than the norm does.

        Not where the input is computed again itself: a chain of such layers would be computed once for each of them.
        """
        products = self.conv.weight[0].numel()
        if products > self.FEW_PRODUCTS or torch.is_autocast_enabled(input.device.type) or is_remembered(input):
            return convolved
        tensors = [t for t in (input, self.conv.weight, self.conv.bias) if t is not None]

        def again(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return self.conv.convolve(input, weight, bias)

        return remember(convolved, again, *tensors)

    def _folded(self, input: Tensor, residual: Tensor | None) -> Tensor:
        scale, shift = folded(self.norm)
        epilogue = {"scale": scale, "shift": shift, "residual": residual, "activation": self.activation}
        return self.conv.convolve(input, self.conv.weight, self.conv.bias, **epilogue)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
