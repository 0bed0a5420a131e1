"""The two residual blocks of He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with dilation.

The last convolution of a block, its norm, sum and ReLU are one operator in eval mode. ``RULES`` renames the keys
that the blocks have in torchvision and in the networks descended from it (conv1, bn1, ..., downsample.0, downsample.1).
"""

from __future__ import annotations

from torch import Tensor, nn

from segops.nn import ConvNormAct

RULES = (
    (r"(.*\.)?conv(\d)\.(weight)", r"\1conv\2.conv.\3"),
    (r"(.*\.)?bn(\d)\.(.*)", r"\1conv\2.norm.\3"),
    (r"(.*\.)?downsample\.0\.(.*)", r"\1downsample.conv.\2"),
    (r"(.*\.)?downsample\.1\.(.*)", r"\1downsample.norm.\2"),
)
"""For :func:`segops.models.official.renamed`: the blocks' keys, and those of a stem of conv1, bn1 beside them."""


def _shortcut(in_channels: int, out_channels: int, stride: int) -> ConvNormAct | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNormAct(in_channels, out_channels, 1, stride, activation=None)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the sum with the input: the block of ResNet-18 and -34.

    Args:
        in_channels: of the input.
        width: channels of both convolutions and of the output.
        stride: of the first convolution.
        dilation: of both.
        residual: add the input; without it the block is just the two convolutions.

    Shape:
        [N, in_channels, H, W] to [N, width, ceil(H / stride), ceil(W / stride)].
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, *, residual: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, width, 3, stride, dilation, dilation)
        self.conv2 = ConvNormAct(width, width, 3, 1, dilation, dilation)
        self.residual = residual
        self.downsample = _shortcut(in_channels, width, stride) if residual else None

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv1(input)
        if not self.residual:
            return self.conv2(x)
        return self.conv2(x, input if self.downsample is None else self.downsample(input))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the sum with the input: the block of ResNet-50 and deeper.

    Args:
        in_channels: of the input.
        width: channels of the first two convolutions; the output has four times as many.
        stride: of the 3x3 convolution.
        dilation: of the 3x3 convolution.

    Shape:
        [N, in_channels, H, W] to [N, 4 * width, ceil(H / stride), ceil(W / stride)].
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, width, 1)
        self.conv2 = ConvNormAct(width, width, 3, stride, dilation, dilation)
        self.conv3 = ConvNormAct(width, 4 * width, 1)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv2(self.conv1(input))
        return self.conv3(x, input if self.downsample is None else self.downsample(input))


def stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    blocks: int,
    stride: int = 1,
    dilation: int = 1,
    first_dilation: int | None = None,
) -> nn.Sequential:
    """`blocks` blocks, the first with `stride`, and with `first_dilation` where that differs from `dilation`."""
    first = block(in_channels, width, stride, dilation if first_dilation is None else first_dilation)
    out = width * block.expansion
    return nn.Sequential(first, *(block(out, width, dilation=dilation) for _ in range(blocks - 1)))
