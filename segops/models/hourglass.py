"""Stacked hourglass networks for heat maps of key points.

Newell, Yang and Deng, "Stacked Hourglass Networks for Human Pose Estimation" (ECCV 2016). Every stack goes from 1/4 of
the image's size down to 1/64 and back, predicts a heat map for each class at 1/4, and is trained on it; the next stack
reads the prediction and the features together. Sides are multiples of 64. The official output (``raw_output=True``) is
one tensor of all stacks' maps, first stack first: [N, stacks, K, H / 4, W / 4]. Images are RGB, 0 to 1.

Keys of stack S:

* the Princeton group's PyTorch code: pre.0.{conv,bn}, pre.{1,3,4}, hgs.S.0.{up1,low1,low2,low3} with low2 recursive,
  features.S.0 (residual blocks: bn1, conv1.conv, bn2, conv2.conv, bn3, conv3.conv, skip_layer.conv),
  features.S.1.{conv,bn}, outs.S.conv, merge_preds.S.conv.conv, merge_features.S.conv.conv. That code also keeps a
  skip_layer in blocks that do not use it, and these are dropped;
* bearpaw/pytorch-pose with one block a level (hg_s2_b1, hg_s8_b1), whose stem is another: ``stem="pytorch_pose"``,
  which load_official finds out. conv1, bn1, layer{1,2,3}.0, hg.S.hg.D.J.0 with D from the deepest level, 0, to
  the first, 3, and J for up1, low1, low3 and, in the deepest, low2, res.S.0 (residual blocks: bn1, conv1, bn2, conv2,
  bn3, conv3, downsample.0), fc.S.{0,1}, score.S, score_.S, fc_.S. It returns a list of what is here one tensor.

Weights begin as torch's defaults.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import ConvNormAct, DilatedConv2d, MaxPool2d
from segops.ops.upsample_nearest import upsample_nearest2d

WIDTH = 256
DEPTH = 4
MULTIPLE = 64
#: Channels between the three residual blocks of the stem, which a pooling follows after the first.
STEMS = {"newell": (64, 128, 128, WIDTH), "pytorch_pose": (64, 128, WIDTH, WIDTH)}


class Residual(nn.Module):
    """A block that normalises before it convolves: 1x1 to half the channels, 3x3, 1x1, and the sum with the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv1 = ConvNormAct(in_channels, half, 1, bias=True)
        self.conv2 = ConvNormAct(half, half, 3, padding=1, bias=True)
        self.conv3 = DilatedConv2d(half, out_channels, 1)
        self.skip = DilatedConv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv2(self.conv1(F.relu(self.norm(input), inplace=True)))
        shortcut = input if self.skip is None else self.skip(input)
        return self.conv3.convolve(x, self.conv3.weight, self.conv3.bias, residual=shortcut)


class Hourglass(nn.Module):
    """`depth` poolings down and as many steps up, each added to a branch at its size: [N, WIDTH, h, w] to the same."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.up1 = Residual(WIDTH, WIDTH)
        self.pool = MaxPool2d(2)
        self.low1 = Residual(WIDTH, WIDTH)
        self.low2: nn.Module = Hourglass(depth - 1) if depth > 1 else Residual(WIDTH, WIDTH)
        self.low3 = Residual(WIDTH, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(self.pool(input))))
        return self.up1(input) + upsample_nearest2d(low, scale_factor=2)


class StackedHourglass(SegmentationModel):
    """`stacks` hourglasses, one after another.

    Args:
        num_classes: heat maps K.
        in_channels: of the images.
        stacks: number of hourglasses.
        stem: "newell", whose third residual block is the first of :data:`WIDTH` channels, or "pytorch_pose", where that
            is the second.

    Raises:
        ValueError: another stem.

    Shape:
        [N, in_channels, H, W] to heat maps [N, K, H, W], with side outputs a list of them, the last stack's first.
    """

    has_side_outputs = True

    def __init__(self, num_classes: int, in_channels: int = 3, *, stacks: int, stem: str = "newell") -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"segops.models.hourglass: stem must be one of {', '.join(STEMS)}, got {stem!r}")
        widths = STEMS[stem]
        first, second, third = map(Residual, widths[:-1], widths[1:])
        self.pre = nn.Sequential(
            ConvNormAct(in_channels, widths[0], 7, 2, 3, bias=True), first, MaxPool2d(2), second, third
        )
        self.hgs = nn.ModuleList(Hourglass(DEPTH) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(Residual(WIDTH, WIDTH), ConvNormAct(WIDTH, WIDTH, 1, bias=True)) for _ in range(stacks)
        )
        self.outs = nn.ModuleList(DilatedConv2d(WIDTH, num_classes, 1) for _ in range(stacks))
        self.merge_preds = nn.ModuleList(DilatedConv2d(num_classes, WIDTH, 1) for _ in range(stacks - 1))
        self.merge_features = nn.ModuleList(DilatedConv2d(WIDTH, WIDTH, 1) for _ in range(stacks - 1))

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        """Heat maps [N, K, H / 4, W / 4] of the last stack, and with `side_outputs` of all, the last first.

        Raises:
            ValueError: a side of the image is no multiple of 64.
        """
        height, width = input.shape[-2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"hourglass: the image's sides must be multiples of {MULTIPLE}, got {height} x {width}")
        x = self.pre(input)
        maps: list[Tensor] = []
        for i, (hourglass, feature, out) in enumerate(zip(self.hgs, self.features, self.outs, strict=True)):
            features = feature(hourglass(x))
            maps.append(out(features))
            if i < len(self.merge_preds):
                x = x + self.merge_preds[i](maps[-1]) + self.merge_features[i](features)
        return maps[::-1] if side_outputs else maps[-1:]

    def official_output(self, input: Tensor) -> Tensor:
        return torch.stack(self.coarse_logits(input, side_outputs=True)[::-1], dim=1)


_BLOCK = r"((?:pre\.[134]|hgs\.\d+\.0(?:\.low2)*\.(?:up1|low[123])|features\.\d+\.0)\.)"
_RULES = (
    (r"(pre\.0|features\.\d+\.1)\.conv\.(\w+)", r"\1.conv.\2"),
    (r"(pre\.0|features\.\d+\.1)\.bn\.(\w+)", r"\1.norm.\2"),
    (_BLOCK + r"bn1\.(\w+)", r"\1norm.\2"),
    (_BLOCK + r"bn2\.(\w+)", r"\1conv1.norm.\2"),
    (_BLOCK + r"bn3\.(\w+)", r"\1conv2.norm.\2"),
    (_BLOCK + r"conv([12])\.conv\.(\w+)", r"\1conv\2.conv.\3"),
    (_BLOCK + r"conv3\.conv\.(\w+)", r"\1conv3.\2"),
    (_BLOCK + r"skip_layer\.conv\.(\w+)", r"\1skip.\2"),
    (r"(outs\.\d+)\.conv\.(\w+)", r"\1.\2"),
    (r"(merge_(?:preds|features)\.\d+)\.conv\.conv\.(\w+)", r"\1.\2"),
)
_POSE_BLOCKS = {
    r"layer1\.0": "pre.1",
    r"layer2\.0": "pre.3",
    r"layer3\.0": "pre.4",
    r"res\.(?P<stack>\d+)\.0": r"features.\g<stack>.0",
    **{
        rf"hg\.(?P<stack>\d+)\.hg\.{level}\.{place}\.0": rf"hgs.\g<stack>.{'low2.' * (DEPTH - 1 - level)}{block}"
        for level in range(DEPTH)
        for place, block in enumerate(("up1", "low1", "low3", "low2")[: 3 if level else 4])
    },
}
_POSE_PARTS = {
    "bn1": "norm",
    "bn2": "conv1.norm",
    "bn3": "conv2.norm",
    "conv1": "conv1.conv",
    "conv2": "conv2.conv",
    "conv3": "conv3",
    r"downsample\.0": "skip",
}
_POSE_RULES = (
    (r"conv1\.(\w+)", r"pre.0.conv.\1"),
    (r"bn1\.(\w+)", r"pre.0.norm.\1"),
    *(
        (rf"{theirs}\.{part}\.(?P<end>\w+)", rf"{ours}.{our_part}.\g<end>")
        for theirs, ours in _POSE_BLOCKS.items()
        for part, our_part in _POSE_PARTS.items()
    ),
    (r"fc\.(\d+)\.0\.(\w+)", r"features.\1.1.conv.\2"),
    (r"fc\.(\d+)\.1\.(\w+)", r"features.\1.1.norm.\2"),
    (r"score\.(\d+)\.(\w+)", r"outs.\1.\2"),
    (r"score_\.(\d+)\.(\w+)", r"merge_preds.\1.\2"),
    (r"fc_\.(\d+)\.(\w+)", r"merge_features.\1.\2"),
)
_UNUSED = (r"(?:hgs|features)\..*skip_layer\..*", r"pre\.3\.skip_layer\..*")


def _convert(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = official.renamed(name, state, (*_RULES, *_POSE_RULES), drop=_UNUSED)
    return {re.sub(r"^(hgs\.\d+)\.0\.", r"\1.", key): value for key, value in ours.items()}


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "num_classes": state["outs.0.weight"].shape[0],
        "in_channels": state["pre.0.conv.weight"].shape[1],
        # Where the channels change in a block, it has a convolution on its way around.
        "stem": "pytorch_pose" if "pre.3.skip.weight" in state else "newell",
    }


def _entry(name: str, stacks: int) -> Entry:
    return Entry(partial(StackedHourglass, stacks=stacks), partial(_convert, name), _options_of)


MODELS = {"hourglass2": _entry("hourglass2", 2), "hourglass8": _entry("hourglass8", 8)}
