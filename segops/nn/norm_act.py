"""Batch norm and activation in training, of which backward keeps the input alone.

On a CPU, planar float32 images take operators of segops, all others PyTorch's.

Rota Bulò et al. ("In-Place Activated BatchNorm", 2018) keep the output instead and invert the activation, which ReLU
does not allow.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segops.ops import dilated_conv_norm as fused
from segops.recompute import kept, remember
from segops.reference.dilated_conv import LEAKY_SLOPE


def activated(x: Tensor, activation: str | None) -> Tensor:
    """The activation of that name, written over `x`."""
    if activation == "relu":
        return F.relu(x, inplace=True)
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE, inplace=True)
    if activation == "silu":
        return F.silu(x, inplace=True)
    return x.sigmoid_() if activation == "sigmoid" else x


def is_watched(module: nn.Module) -> bool:
    """Whether somebody has hooks on its calls."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift that a norm in eval mode amounts to."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def trains_lean(norm: nn.Module, x: Tensor) -> bool:
    """Whether :func:`norm_act` stands for ``activated(norm(x))``.

    Not for other norms, such as one of all ranks, nor where somebody watches it, nor in a compiled graph, where the
    compiler decides what is computed twice.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and not is_watched(norm)
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.requires_grad
    )


def norm_act(x: Tensor, norm: nn.BatchNorm2d, activation: str | None) -> Tensor:
    """``activated(norm(x), activation)`` of a norm in training mode; its running statistics are updated as by itself.

    Args:
        x: [N, C, H, W], what a convolution gave.
        norm: with weight and bias.
        activation: one of ``ConvNormAct.ACTIVATIONS``.

    Raises:
        ValueError: one value per channel.
    """
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"segops.nn.ConvNormAct: training needs more than one value per channel, got {list(x.shape)} to normalise"
        )
    output, mean, inverse = _NormAct.apply(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, _momentum(norm), norm.eps, activation
    )

    def again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
        if fused.applies(x, weight, bias):
            number = fused.number_of(activation)
            same: Tensor = torch.ops.segops.dilated_conv2d_norm_again(x, weight, bias, mean, inverse, number)
            return same
        return activated(_normalised(x, weight, bias, mean, inverse), activation)

    return remember(output, again, x, norm.weight, norm.bias, mean, inverse)


def _momentum(norm: nn.BatchNorm2d) -> float:
    """Counts the batch, as the norm itself does."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the mean of all batches
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    variance = inverse.square().reciprocal_()  # eps is in it
    return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, 0.0)[0]


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        activation: str | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if fused.applies(x, weight, bias):
            number = fused.number_of(activation)
            output, mean, inverse, variance = torch.ops.segops.dilated_conv2d_norm(x, weight, bias, eps, number)
            if running_mean is not None and running_var is not None:
                count = x.numel() // x.shape[1]
                running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
                running_var.mul_(1 - momentum).add_(variance, alpha=momentum * count / (count - 1))
        else:
            output, mean, inverse = torch.native_batch_norm(
                x, weight, bias, running_mean, running_var, True, momentum, eps
            )
            activated(output, activation)
        ctx.rebuild_x, parts = kept(x)
        ctx.save_for_backward(weight, bias, mean, inverse, *parts)
        ctx.eps, ctx.activation = eps, activation
        ctx.mark_non_differentiable(mean, inverse)
        ctx.set_materialize_grads(False)
        return output, mean, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 8
        weight, bias, mean, inverse, *parts = ctx.saved_tensors
        x = ctx.rebuild_x(*parts)
        if fused.applies(x, weight, bias):
            norm = (x, weight, bias, mean, inverse, fused.number_of(ctx.activation))
            return *torch.ops.segops.dilated_conv2d_norm_backward(grad.contiguous(), *norm), *(None,) * 5
        if ctx.activation is not None:
            grad = _before_activation(grad, _normalised(x, weight, bias, mean, inverse), ctx.activation)
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return of_x, of_weight, of_bias, *(None,) * 5


def _before_activation(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """The gradient of what was activated, written over that."""
    aten = torch.ops.aten
    if activation == "relu":
        return aten.threshold_backward(grad, x, 0, grad_input=x)
    if activation == "leaky_relu":
        return aten.leaky_relu_backward(grad, x, LEAKY_SLOPE, False, grad_input=x)
    if activation == "silu":
        return aten.silu_backward(grad, x, grad_input=x)
    return aten.sigmoid_backward(grad, x.sigmoid_(), grad_input=x)
