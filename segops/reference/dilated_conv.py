"""dilated_conv2d in plain PyTorch, by its definition."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: By the number that stands for it in the operator.
ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "sigmoid", "prelu")
LEAKY_SLOPE = 0.01

_FUNCTIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, LEAKY_SLOPE),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


def dilated_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    slope: Tensor | None,
    window: list[int],
    groups: int,
    activation: int,
    fast: bool = False,
) -> Tensor:
    """activation(scale * (conv + bias) + shift + residual); 16-bit input is computed in float32 and rounded once."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    stride, padding, dilation = window[:2], window[2:4], window[4:]
    x = F.conv2d(input.to(wide), weight.to(wide), None, stride, padding, dilation, groups)
    if bias is not None:
        x = x + bias[:, None, None]
    if scale is not None:
        x = x * scale[:, None, None]
    if shift is not None:
        x = x + shift[:, None, None]
    if residual is not None:
        x = x + residual
    name = ACTIVATIONS[activation]
    x = F.prelu(x, slope) if name == "prelu" and slope is not None else _FUNCTIONS[name](x)
    return x.to(input.dtype)
