"""The batch norm in training, and the activation, that follow a convolution: for :mod:`segops.nn.norm_act`, on a CPU.

Of planar float32 images: each channel is measured, normalised and activated while it is in a cache, and backward
computes the activation's part on the way. There is no public function, and no derivative of these operators: the layer
has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segops import _library, backends
from segops._library import define_op
from segops.reference.dilated_conv import ACTIVATIONS


def _fake_norm(
    image: Tensor, weight: Tensor, bias: Tensor, eps: float, activation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, inverse, variance = (torch.empty_like(weight) for _ in range(3))
    return torch.empty_like(image), mean, inverse, variance


def _fake_norm_again(
    image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, activation: int
) -> Tensor:
    return torch.empty_like(image)


def _fake_norm_backward(
    grad_output: Tensor, image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(image), torch.empty_like(weight), torch.empty_like(bias)


define_op(
    "dilated_conv2d_norm(Tensor image, Tensor weight, Tensor bias, float eps, int activation) "
    "-> (Tensor output, Tensor mean, Tensor inverse, Tensor variance)",
    _fake_norm,
)
define_op(
    "dilated_conv2d_norm_again(Tensor image, Tensor weight, Tensor bias, Tensor mean, Tensor inverse, int activation) "
    "-> Tensor",
    _fake_norm_again,
)
define_op(
    "dilated_conv2d_norm_backward(Tensor grad_output, Tensor image, Tensor weight, Tensor bias, Tensor mean, "
    "Tensor inverse, int activation) -> (Tensor grad_image, Tensor grad_weight, Tensor grad_bias)",
    _fake_norm_backward,
)


def applies(image: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the operators of this page take the image [N, C, H, W]."""
    return (
        image.device.type == "cpu"
        and image.dtype == weight.dtype == bias.dtype == torch.float32
        and image.is_contiguous()
        and image.numel() > 0
        and _library.native is not None
        and backends.resolve(None, image.device) == "native"
    )


def number_of(activation: str | None) -> int:
    return ACTIVATIONS.index(activation)
