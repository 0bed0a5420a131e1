"""VGG-16's thirteen convolutions, on which several of these networks stand.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015), configuration D:
five stages of 3x3 convolutions, which are conv1_1 to conv5_3 in checkpoints. What follows the stages differs from
network to network, and so do their padding and norms. :func:`encoder` makes the stages, :func:`decoder` their mirror
image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from segops.nn import DilatedConv2d

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Channels of each stage, in units of the first one's, and the number of its convolutions."""

WIDTH = 64
"""Channels of the first stage."""

CLASSIFIER_MULTIPLE = 64
"""Channels of fc6 and fc7, the classifier, in units of the first stage's: 4096 in VGG-16."""

Conv = Callable[..., nn.Module]  # conv(in_channels, out_channels, dilation=...)


class ConvReLU(DilatedConv2d):
    """A convolution and a ReLU in one operator, with the arguments and the state of :class:`torch.nn.Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.weight, self.bias, activation="relu")


def encoder(
    in_channels: int, conv: Conv, width: int = WIDTH, dilations: tuple[int, ...] = (1, 1, 1, 1, 1)
) -> list[nn.Sequential]:
    """The five stages; ``encoder[s - 1][i - 1]`` is conv{s}_{i}.

    Args:
        in_channels: of the image.
        conv: ``conv(in_channels, out_channels, dilation=d)`` makes a convolution and what belongs to it.
        width: channels of the first stage; 64 is VGG-16.
        dilations: of each stage's convolutions.
    """
    stages = []
    for (multiple, depth), dilation in zip(STAGES, dilations, strict=True):
        widths = [in_channels] + [width * multiple] * depth
        stages.append(nn.Sequential(*(conv(i, o, dilation=dilation) for i, o in pairwise(widths))))
        in_channels = widths[-1]
    return stages


def decoder(conv: Conv, width: int = WIDTH) -> list[nn.Sequential]:
    """The five stages backwards: ``decoder[5 - s]`` keeps the channels of stage s and ends with those of stage s - 1.

    The last convolution of all keeps `width` channels.
    """
    below = [width] + [width * multiple for multiple, _ in STAGES]
    stages = []
    for (multiple, depth), out_channels in reversed(list(zip(STAGES, below, strict=False))):
        widths = [width * multiple] * depth + [out_channels]
        stages.append(nn.Sequential(*(conv(i, o) for i, o in pairwise(widths))))
    return stages


def positions() -> Iterator[tuple[int, int]]:
    """Stage s and place i in it, both counted from 1, of each convolution."""
    return ((stage, i + 1) for stage, (_, depth) in enumerate(STAGES, 1) for i in range(depth))


def conv_rules(ours: str) -> list[tuple[str, str]]:
    """Rules of :func:`segops.models.official.renamed` that make conv{s}_{i} that of the encoder named `ours`."""
    return [(rf"conv{s}_{i}\.(weight|bias)", rf"{ours}.{s - 1}.{i - 1}.\1") for s, i in positions()]


def options_of(first: Tensor) -> dict[str, Any]:
    """The options of an encoder, from the weight of its first convolution."""
    return {"in_channels": first.shape[1], "width": first.shape[0]}


def initialise(module: nn.Module) -> None:
    """He normal weights (He et al., 2015) and zero biases for every convolution."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
