"""CSNet, for salient objects with a hundred thousand parameters.

Gao et al., "Highly Efficient Salient Object Detection with 100K Parameters" (ECCV 2020). "csnet_x1" and "csnet_x2" are
the networks before pruning, "csnet_l_x1" and "csnet_l_x2" have the published channels after it. :class:`Block` is the
paper's ILBlock, :class:`CSNet` four stages of them and the cross-stage fusion, :class:`Channels` a table of widths.

Official keys: ``stage{S}.{B}`` of ``conv1x1.conv.weight``, ``conv1x1.{bns,prelus}.{R}``,
``conv3x3_{1,2}.{convs,bns,prelus}.{R}``; ``oct_fuse`` of ``fuse.conv.weight``, ``fuse.{bns,prelus}.{R}``,
``ms.convs.{R}.{msconv.{D},bn,prelu}``, ``fuse1x1.conv.weight``, ``fuse1x1.{bns,prelus}.0``; ``cls_layer``. Where
pruning left a dilation without channels, its number D may be there, skipped or not counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import DilatedConv2d, GOctConv2d

DILATIONS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Channels:
    """How many channels there are where; a tuple has a number for each branch, finest first.

    Attributes:
        stages: of each stage's blocks, what they put out.
        mixed: of the fusion's first layer.
        dilated: for each of its branches, of the convolutions of :data:`DILATIONS`.
        fused: of its last layer.
    """

    stages: tuple[tuple[tuple[int, ...], ...], ...]
    mixed: tuple[int, ...]
    dilated: tuple[tuple[int, ...], ...]
    fused: int


def unpruned(width: int) -> Channels:
    """The table before pruning: 20 for "csnet_x1", 40 for "csnet_x2"."""

    def halves(channels: int) -> tuple[int, int]:
        return channels // 2, channels // 2

    def stage(channels: int, blocks: int) -> tuple[tuple[int, ...], ...]:
        return (*[halves(channels)] * (blocks - 1), (channels,))

    out_of = (2 * width, 4 * width, 4 * width)
    mixed = tuple(channels // 3 for channels in out_of)
    last = len(DILATIONS) - 1
    dilated = tuple((*[c // len(DILATIONS)] * last, c - last * (c // len(DILATIONS))) for c in mixed)
    stages = ((halves(width),), (halves(width),) * 3, stage(out_of[0], 4), stage(out_of[1], 6), stage(out_of[2], 4))
    return Channels(stages, mixed, dilated, sum(mixed))


L_X1 = Channels(
    stages=(
        ((8, 10),),
        ((9, 10), (10, 10), (10, 10)),
        ((19, 13), (19, 17), (20, 12), (34,)),
        ((24, 21), (26, 27), (22, 18), (19, 18), (23, 18), (38,)),
        ((18, 29), (25, 24), (26, 20), (50,)),
    ),
    mixed=(12, 24, 24),
    dilated=((1, 2, 2, 2, 4), (1, 4, 4, 4, 5), (2, 2, 4, 5, 4)),
    fused=60,
)
L_X2 = Channels(
    stages=(
        ((13, 10),),
        ((13, 12), (18, 11), (18, 12)),
        ((28, 21), (34, 22), (31, 29), (51,)),
        ((23, 26), (27, 26), (25, 20), (17, 21), (19, 25), (38,)),
        ((18, 31), (31, 27), (26, 44), (64,)),
    ),
    mixed=(17, 38, 32),
    dilated=((2, 1, 2, 2, 1), (0, 6, 6, 7, 5), (0, 1, 3, 7, 7)),
    fused=79,
)


class ConvX100(DilatedConv2d):
    """A convolution with a hundred times the weight it stores, so that weight decay acts on it otherwise.

    What it multiplies with begins as PyTorch's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            self.weight.div_(100)

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, **epilogue: Any) -> Tensor:
        return super().convolve(input, weight * 100, bias, **epilogue)


class NormPReLU(nn.Module):
    """Batch norm and a PReLU with a slope for each channel; in eval mode a part of the convolution before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)

    def forward(self, input: Tensor) -> Tensor:
        return self.prelu(self.norm(input))

    def folded(self) -> list[Tensor]:
        """scale, shift and slope of :func:`segops.dilated_conv2d`."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return [scale, norm.bias - norm.running_mean * scale, self.prelu.weight]


class ParallelConvs(nn.Module):
    """Convolutions of one image side by side, their outputs concatenated, normalised and activated."""

    def __init__(self, convs: Sequence[ConvX100]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.sizes = [conv.out_channels for conv in convs]
        self.act = NormPReLU(sum(self.sizes))

    def forward(self, input: Tensor) -> Tensor:
        if self.act.norm.training:
            return self.act(torch.cat([conv(input) for conv in self.convs], 1))
        outputs = []
        epilogues = zip(*(vector.split(self.sizes) for vector in self.act.folded()), strict=True)
        for conv, (scale, shift, slope) in zip(self.convs, epilogues, strict=True):
            assert isinstance(conv, ConvX100)
            epilogue = {"scale": scale, "shift": shift, "activation": "prelu", "slope": slope}
            outputs.append(conv.convolve(input, conv.weight, conv.bias, **epilogue))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def dilated(in_channels: int, out_channels: Sequence[int]) -> list[ConvX100]:
    """A 3x3 convolution of each of :data:`DILATIONS` that has channels."""
    pairs = zip(out_channels, DILATIONS, strict=True)
    return [ConvX100(in_channels, c, 3, padding=d, dilation=d, bias=False) for c, d in pairs if c]


class Mix(nn.Module):
    """A generalised octave convolution, with norm and activation of each branch."""

    def __init__(
        self, in_channels: Sequence[int], out_channels: Sequence[int], kernel_size: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = GOctConv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        self.acts = nn.ModuleList(NormPReLU(channels) for channels in out_channels)

    def forward(self, input: Sequence[Tensor]) -> list[Tensor]:
        return [act(branch) for act, branch in zip(self.acts, self.conv(input), strict=True)]


class Block(nn.Module):
    """The in-layer block: branches are mixed, then each goes through two depthwise 3x3 convolutions of its own."""

    def __init__(
        self, in_channels: Sequence[int], out_channels: Sequence[int], kernel_size: int = 1, stride: int = 1
    ) -> None:
        super().__init__()

        def depthwise() -> nn.ModuleList:
            options: dict[str, Any] = {"padding": 1, "bias": False}
            return nn.ModuleList(ParallelConvs([ConvX100(c, c, 3, groups=c, **options)]) for c in out_channels)

        self.mix = Mix(in_channels, out_channels, kernel_size, stride)
        self.depthwise_1 = depthwise()
        self.depthwise_2 = depthwise()

    def forward(self, input: Sequence[Tensor]) -> list[Tensor]:
        layers = zip(self.depthwise_1, self.depthwise_2, self.mix(input), strict=True)
        return [second(first(branch)) for first, second, branch in layers]


class CSNet(SegmentationModel):
    """Five stages at 1, 1, 1/2, 1/4 and 1/8 of the size, with branches of half of that, and a head on the last three.

    The logits are at half the size. H and W are multiples of 16.

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        channels: :func:`unpruned`, :data:`L_X1`, :data:`L_X2`, or another table.
    """

    HEAD_STAGES = 3
    MULTIPLE = 16

    def __init__(self, num_classes: int, in_channels: int, channels: Channels) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        into: tuple[int, ...] = (in_channels,)
        for s, stage in enumerate(channels.stages):
            blocks = []
            for b, out_of in enumerate(stage):
                halves = s >= len(channels.stages) - self.HEAD_STAGES and b == 0
                blocks.append(Block(into, out_of, 3 if halves or s == 0 else 1, 2 if halves else 1))
                into = out_of
            self.stages.append(nn.Sequential(*blocks))
        ends = [stage[-1][0] for stage in channels.stages[-self.HEAD_STAGES :]]
        self.mix = Mix(ends, channels.mixed)
        self.dilated = nn.ModuleList(
            ParallelConvs(dilated(c, out)) for c, out in zip(channels.mixed, channels.dilated, strict=True)
        )
        self.fuse = Mix([sum(out) for out in channels.dilated], [channels.fused])
        self.classifier = DilatedConv2d(channels.fused, num_classes, 1)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        height, width = input.shape[-2:]
        if height % self.MULTIPLE or width % self.MULTIPLE:
            raise ValueError(
                f"segops.models: CSNet needs sides that are multiples of {self.MULTIPLE}, got {height} x {width}"
            )
        features: list[list[Tensor]] = [[input]]
        for stage in self.stages:
            features.append(stage(features[-1]))
        ends = [branches[0] for branches in features[-self.HEAD_STAGES :]]
        wide = [layer(branch) for layer, branch in zip(self.dilated, self.mix(ends), strict=True)]
        return [self.classifier(self.fuse(wide)[0])]

    def official_output(self, input: Tensor) -> Tensor:
        return self.to_size(self.coarse_logits(input)[0], *input.shape[-2:])


def _mix_rules(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (rf"{theirs}\.conv\.weight", rf"{ours}.conv.weight"),
        (rf"{theirs}\.bns\.(?P<r>\d)\.(?P<of>\w+)", rf"{ours}.acts.\g<r>.norm.\g<of>"),
        (rf"{theirs}\.prelus\.(?P<r>\d)\.weight", rf"{ours}.acts.\g<r>.prelu.weight"),
    ]


_DEPTHWISE = r"stage(\d)\.(\d)\.conv3x3_(\d)"
_DILATED = r"oct_fuse\.ms\.convs\.(\d)"
_RULES = [
    *_mix_rules(r"stage(\d)\.(\d)\.conv1x1", r"stages.\1.\2.mix"),
    *_mix_rules(r"oct_fuse\.fuse", "mix"),
    *_mix_rules(r"oct_fuse\.fuse1x1", "fuse"),
    (rf"{_DEPTHWISE}\.convs\.(\d)\.weight", r"stages.\1.\2.depthwise_\3.\4.convs.0.weight"),
    (rf"{_DEPTHWISE}\.bns\.(\d)\.(\w+)", r"stages.\1.\2.depthwise_\3.\4.act.norm.\5"),
    (rf"{_DEPTHWISE}\.prelus\.(\d)\.weight", r"stages.\1.\2.depthwise_\3.\4.act.prelu.weight"),
    (rf"{_DILATED}\.msconv\.(\d)\.weight", r"dilated.\1.convs.\2.weight"),
    (rf"{_DILATED}\.bn\.(\w+)", r"dilated.\1.act.norm.\2"),
    (rf"{_DILATED}\.prelu\.weight", r"dilated.\1.act.prelu.weight"),
    (r"cls_layer\.(\w+)", r"classifier.\1"),
]


def _convert(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {key: value for key, value in state.items() if value.numel() or "msconv" not in key}
    return _closed_up(official.renamed(name, kept, _RULES))


def _closed_up(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The dilations of each branch counted from 0 without gaps."""
    pattern = re.compile(r"(dilated\.\d\.convs\.)(\d)(\.weight)")
    seen: dict[str, int] = {}
    new = {}
    for key in sorted(state):
        match = pattern.fullmatch(key)
        if match is not None:
            branch = match[1]
            new[key] = f"{branch}{seen.setdefault(branch, 0)}{match[3]}"
            seen[branch] += 1
    return {new.get(key, key): value for key, value in state.items()}


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "num_classes": state["classifier.weight"].shape[0],
        "in_channels": state["stages.0.0.mix.conv.weight"].shape[1],
    }


MODELS = {
    name: Entry(partial(CSNet, channels=channels), partial(_convert, name), _options_of, num_classes=1)
    for name, channels in (
        ("csnet_x1", unpruned(20)),
        ("csnet_x2", unpruned(40)),
        ("csnet_l_x1", L_X1),
        ("csnet_l_x2", L_X2),
    )
}
