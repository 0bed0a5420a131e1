"""Transposed convolutions that interpolate: the last layers of FCN and of dilated networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bilinear_kernel(size: int) -> Tensor:
    """The kernel [size, size] with which a transposed convolution of stride ceil(size / 2) interpolates linearly."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.outer(ramp, ramp)


class BilinearConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution without bias whose weights interpolate each channel by itself.

    Args:
        channels: of input and output.
        kernel_size, stride, padding, groups: of :class:`torch.nn.ConvTranspose2d`. With one group the weight is
            [channels, channels, k, k] and zero off its diagonal, with ``groups=channels`` it is [channels, 1, k, k].
        learnable: let training change the weights.
    """

    def __init__(
        self, channels: int, kernel_size: int, stride: int, padding: int = 0, groups: int = 1, learnable: bool = False
    ) -> None:
        super().__init__(channels, channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.weight.requires_grad_(learnable)

    def reset_parameters(self) -> None:
        size = self.kernel_size[0]
        per_group = self.in_channels // self.groups
        channel = torch.arange(self.in_channels)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[channel, channel % per_group] = bilinear_kernel(size).to(self.weight)
