"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015): an encoder, and a decoder that sees every level of it again.

``unet`` is the padded network with batch norm that is in common use (milesial/Pytorch-UNet), ``unet_valid`` that of the
paper, whose convolutions shrink the map and which has no norm (jvanvugt/pytorch-unet with its defaults).

Official keys: of ``unet`` ``inc.double_conv.{0,1,3,4}``, ``downN.maxpool_conv.1.double_conv.{0,1,3,4}``, ``upN.up``,
``upN.conv.double_conv.{0,1,3,4}``, ``outc.conv``; of ``unet_valid`` ``down_path.N.block.{0,2}``, ``up_path.N.up``,
``up_path.N.conv_block.block.{0,2}``, ``last``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.models.vgg import ConvReLU
from segops.nn import Cat, ConvNormAct, ConvTranspose2d, DilatedConv2d, MaxPool2d, Upsample, UpsampleCat

LEVELS = 4  # poolings


class UNet(SegmentationModel):
    """The padded U-Net: 3x3 convolutions with padding and batch norm, any image of at least 16 pixels a side.

    Args:
        num_classes, in_channels: of the logits and of the images.
        bilinear: upsample bilinearly, corners aligned, instead of by transposed convolution; this halves the channels
            of the lowest level and of each decoder's end.
        width: channels of the first level; each pooling doubles them.

    The parameters have torch's default initialisation, as the official code leaves them.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, bilinear: bool = False, width: int = 64) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        lowest = widths[-1] if bilinear else 2 * widths[-1]
        self.pool = MaxPool2d(2)
        self.down = nn.ModuleList(map(_double_conv, [in_channels, *widths], [*widths, lowest]))
        ends = [width, *widths[:-1]] if bilinear else widths  # of the decoder's levels, finest first
        self.up = nn.ModuleList(_Up(2 * w, end, bilinear) for w, end in zip(widths[::-1], ends[::-1], strict=True))
        self.head = DilatedConv2d(width, num_classes, 1)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        height, width = input.shape[-2:]
        if height < 2**LEVELS or width < 2**LEVELS:
            raise ValueError(
                f"segops.models.unet: images must have at least {2**LEVELS} pixels a side, got {height} x {width}"
            )
        return [self.head(_down_and_up(input, self.down, self.pool, self.up))]


def _down_and_up(input: Tensor, down: nn.ModuleList, pool: MaxPool2d, ups: nn.ModuleList) -> Tensor:
    """Level after level, each on the pooled output of the one above, and back, with every level's output once more."""
    first, *deeper = down
    levels = [first(input)]
    for level in deeper:
        levels.append(level(pool(levels[-1])))
    for up in ups:
        # It takes both images off the list: an argument would live until the call is over, and in training the images
        # are large and needed no more once they are concatenated.
        levels.append(up(levels))
    return levels.pop()


class _Joining(nn.Module):
    """Of the two last of the levels: joined, and two convolutions."""

    conv: nn.Sequential

    def forward(self, levels: list[Tensor]) -> Tensor:
        first, second = self.conv
        output: Tensor = second(first(self._joined(levels.pop(), levels.pop())))
        return output

    def _joined(self, input: Tensor, skip: Tensor) -> Tensor:
        raise NotImplementedError


class _Up(_Joining):
    """Of the two last of the levels: the lower one doubled, filled up with zeros to the skip connection's size, after
    that, and two convolutions."""

    def __init__(self, in_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        half = in_channels // 2
        self.up = (
            Upsample(scale_factor=2, mode="bilinear", align_corners=True) if bilinear else _transposed(in_channels)
        )
        self.up_cat = UpsampleCat(align_corners=True) if bilinear else None
        self.cat = Cat()
        self.conv = _double_conv(in_channels, out_channels, half if bilinear else out_channels)

    def _joined(self, input: Tensor, skip: Tensor) -> Tensor:
        # Pooling drops the last row and column of an odd size, so there may be one to fill.
        extra_h, extra_w = skip.shape[-2] - 2 * input.shape[-2], skip.shape[-1] - 2 * input.shape[-1]
        # A graph of any size does not know, and fills up with what may be nothing.
        fits = statically_known_true(extra_h == 0) and statically_known_true(extra_w == 0)
        if fits and self.up_cat is not None:
            joined: Tensor = self.up_cat(input, skip)
            return joined
        up = self.up(input)
        if not fits:
            up = F.pad(up, (0, extra_w, 0, extra_h))
        joined = self.cat((skip, up))
        return joined


def _double_conv(in_channels: int, out_channels: int, between: int | None = None) -> nn.Sequential:
    between = out_channels if between is None else between
    return nn.Sequential(
        ConvNormAct(in_channels, between, 3, padding=1),
        ConvNormAct(between, out_channels, 3, padding=1),
    )


def _transposed(in_channels: int) -> ConvTranspose2d:
    return ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)


class UNetValid(SegmentationModel):
    """The paper's U-Net: convolutions without padding, so that logits are only of pixels whose context is all image.

    Logits at the image's size come as in the paper from an image continued by reflection, which needs at least 108
    pixels a side. ``raw_output=True`` takes an image of at least 188 as it is and returns the logits of its inner
    part, 184 pixels smaller where each pooling meets an even size (572 to 388).

    Args:
        num_classes, in_channels: of the logits and of the images.
        width: channels of the first level; each pooling doubles them.

    Weights are drawn from N(0, 2 / fan-in) as the paper says; biases are zero.
    """

    margin = 92
    smallest = 188  # image, which leaves logits of 4 x 4
    smallest_reflected = 108  # one more than the most that is added at a side

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS + 1)]
        self.pool = MaxPool2d(2)
        self.down = nn.ModuleList(map(_double_valid, [in_channels, *widths], widths))
        self.up = nn.ModuleList(_UpValid(w) for w in widths[:0:-1])
        self.head = DilatedConv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        height, width = input.shape[-2:]
        self._check(height, width, self.smallest_reflected, "images")
        padding = (self.margin, self._after(width), self.margin, self._after(height))
        return [self.official_output(F.pad(input, padding, mode="reflect"))[..., :height, :width]]

    def official_output(self, input: Tensor) -> Tensor:
        self._check(input.shape[-2], input.shape[-1], self.smallest, "images with raw_output=True")
        logits: Tensor = self.head(_down_and_up(input, self.down, self.pool, self.up))
        return logits

    def _after(self, size: int) -> int:
        """Pixels to add after `size`, so that the whole is 16 m + 60, which gives the 16 m - 124 first logits."""
        return (size + 2 * self.margin - 60 + 15) // 16 * 16 + 60 - size - self.margin

    @staticmethod
    def _check(height: int, width: int, least: int, what: str) -> None:
        if height < least or width < least:
            raise ValueError(
                f"segops.models.unet_valid: {what} must have at least {least} pixels a side, got {height} x {width}"
            )


def _double_valid(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ConvReLU(in_channels, out_channels, 3), ConvReLU(out_channels, out_channels, 3))


class _UpValid(_Joining):
    """The map doubled, before the middle of the skip connection, and two convolutions."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.up = _transposed(in_channels)
        self.conv = _double_valid(in_channels, in_channels // 2)

    def _joined(self, input: Tensor, skip: Tensor) -> Tensor:
        up = self.up(input)
        height, width = up.shape[-2:]
        top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
        return torch.cat((up, skip[..., top : top + height, left : left + width]), 1)


_OF_DOUBLE_CONV = {"0": "0.conv", "1": "0.norm", "3": "1.conv", "4": "1.norm"}


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [(r"outc\.conv\.(\w+)", r"head.\1")]
    rules += [(rf"up{level + 1}\.up\.(\w+)", rf"up.{level}.up.\1") for level in range(LEVELS)]
    for theirs, ours in _OF_DOUBLE_CONV.items():
        rules += [
            (rf"inc\.double_conv\.{theirs}\.(\w+)", rf"down.0.{ours}.\1"),
            (rf"down(\d)\.maxpool_conv\.1\.double_conv\.{theirs}\.(\w+)", rf"down.\1.{ours}.\2"),
        ]
        rules += [
            (rf"up{level + 1}\.conv\.double_conv\.{theirs}\.(\w+)", rf"up.{level}.conv.{ours}.\1")
            for level in range(LEVELS)
        ]
    return official.renamed("unet", state, rules)


def _convert_valid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"down_path\.(\d)\.block\.0\.(\w+)", r"down.\1.0.\2"),
        (r"down_path\.(\d)\.block\.2\.(\w+)", r"down.\1.1.\2"),
        (r"up_path\.(\d)\.up\.(\w+)", r"up.\1.up.\2"),
        (r"up_path\.(\d)\.conv_block\.block\.0\.(\w+)", r"up.\1.conv.0.\2"),
        (r"up_path\.(\d)\.conv_block\.block\.2\.(\w+)", r"up.\1.conv.1.\2"),
        (r"last\.(\w+)", r"head.\1"),
    ]
    return official.renamed("unet_valid", state, rules)


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    width, in_channels = state["down.0.0.conv.weight"].shape[:2]
    options = {"num_classes": state["head.weight"].shape[0], "in_channels": in_channels, "width": width}
    return {**options, "bilinear": not any(".up.weight" in key for key in state)}


def _options_of_valid(state: dict[str, Tensor]) -> dict[str, Any]:
    width, in_channels = state["down.0.0.weight"].shape[:2]
    return {"num_classes": state["head.weight"].shape[0], "in_channels": in_channels, "width": width}


MODELS = {
    "unet": Entry(UNet, _convert, _options_of),
    "unet_valid": Entry(UNetValid, _convert_valid, _options_of_valid),
}
