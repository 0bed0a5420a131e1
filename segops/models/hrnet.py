"""HRNetV2: branches of several resolutions side by side, which exchange what they have again and again.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation" (CVPR 2019); Wang et al., "Deep
High-Resolution Representation Learning for Visual Recognition" (TPAMI 2020) is the form for segmentation: all branches
are brought to the finest one's size, and their concatenation is classified at 1/4. "hrnet_w48_ocr" ends with
:class:`segops.models.hrnet_ocr.ObjectContext` instead. Official output (``raw_output=True``): logits at 1/4; of OCR
[auxiliary logits, logits].

Keys, those of the authors' code, with or without ``model.``: conv1, bn1, conv2, bn2, layer1.B.*, transition1.0.{0,1},
transition{1,2,3}.N.0.{0,1}, stage{2,3,4}.M.branches.R.B.*, stageS.M.fuse_layers.I.J.{0,1} to finer and
stageS.M.fuse_layers.I.J.T.{0,1} to coarser branches, last_layer.{0,1,3}; of OCR aux_head, conv3x3_ocr, ocr_distri_head,
cls_head. Weights begin as there: convolutions normal of deviation 0.001.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segops.models import official, residual
from segops.models.hrnet_ocr import OCR_RULES, ObjectContext
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.models.residual import BasicBlock, Bottleneck, stage
from segops.nn import ConvNormAct, DilatedConv2d
from segops.ops.upsample_bilinear import upsample_bilinear2d

STEM = 64
MODULES = (1, 4, 3)


class HRNet(SegmentationModel):
    """Four stages, each of which adds a branch of half the resolution and twice the channels.

    Args:
        num_classes, in_channels: of logits and images.
        width: channels of the finest branch.
        first: blocks of the first stage and their width; it puts out four times as many channels.
        blocks: of each branch between two exchanges.
        modules: of stages 2, 3 and 4: how often their branches exchange.
        ocr: end with object contexts, and an auxiliary classifier for training.
        align_corners: of all bilinear interpolation; by default with `ocr` only, as the published networks have it.

    Shape:
        [N, in_channels, H, W] to logits [N, num_classes, H, W]; with `ocr`, in training and with ``side_outputs=True``
        a list of the logits and the auxiliary ones.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int,
        first: tuple[int, int] = (4, 64),
        blocks: int = 4,
        modules: tuple[int, int, int] = MODULES,
        ocr: bool = False,
        align_corners: bool | None = None,
    ) -> None:
        super().__init__()
        self.align_corners = ocr if align_corners is None else align_corners
        self.has_side_outputs = ocr
        self.conv1 = ConvNormAct(in_channels, STEM, 3, 2, 1)
        self.conv2 = ConvNormAct(STEM, STEM, 3, 2, 1)
        self.layer1 = stage(Bottleneck, STEM, first[1], first[0])
        widths = [width << branch for branch in range(len(modules) + 1)]
        self.stages = nn.ModuleList()
        before = [first[1] * Bottleneck.expansion]
        for count in modules:
            now = widths[: len(before) + 1]
            self.stages.append(Stage(before, now, count, blocks, self.align_corners))
            before = now
        channels = sum(widths)
        self.ocr = ObjectContext(channels, num_classes) if ocr else None
        self.last_layer = None if ocr else _classifier(channels, num_classes)
        self.aux_head = _classifier(channels, num_classes) if ocr else None
        for module in self.modules():
            if isinstance(module, DilatedConv2d):
                nn.init.normal_(module.weight, std=0.001)

    def features(self, input: Tensor) -> Tensor:
        """All branches at the finest one's size: [N, 15 * width, ceil(H / 4), ceil(W / 4)]."""
        branches = [self.layer1(self.conv2(self.conv1(input)))]
        for part in self.stages:
            branches = part(branches)
        size = branches[0].shape[-2:]
        return torch.cat([_resized(branch, size, self.align_corners) for branch in branches], dim=1)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        features = self.features(input)
        if self.last_layer is not None:
            return [self.last_layer(features)]
        assert self.aux_head is not None
        assert self.ocr is not None
        auxiliary = self.aux_head(features)
        logits = [self.ocr(features, auxiliary)]
        return [*logits, auxiliary] if side_outputs else logits

    def official_output(self, input: Tensor) -> Tensor | list[Tensor]:
        logits = self.coarse_logits(input, self.has_side_outputs)
        return logits[::-1] if self.has_side_outputs else logits[0]


class Stage(nn.Module):
    """One branch more, and exchanges between all of them.

    Args:
        before: channels of the branches that come in, finest first.
        widths: of those that go out, one more.
        modules, blocks, align_corners: of :class:`HRNet`.
    """

    def __init__(
        self, before: Sequence[int], widths: Sequence[int], modules: int, blocks: int, align_corners: bool
    ) -> None:
        super().__init__()
        new = ConvNormAct(before[-1], widths[-1], 3, 2, 1)
        # Only the first stage's single branch has other channels than the branch that continues it.
        same = [] if len(before) > 1 else [ConvNormAct(before[0], widths[0], 3, 1, 1)]
        self.transition = nn.ModuleList([*same, new])
        self.exchanges = nn.Sequential(*(Exchange(widths, blocks, align_corners) for _ in range(modules)))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        new = self.transition[-1](branches[-1])
        kept = branches if len(self.transition) == 1 else [self.transition[0](branches[0])]
        result: list[Tensor] = self.exchanges([*kept, new])
        return result


class Exchange(nn.Module):
    """Residual blocks in each branch, then each branch becomes the sum of what all of them give it.

    A coarser branch gives by a 1x1 convolution and bilinear interpolation, a finer one by 3x3 convolutions of stride 2.
    """

    def __init__(self, widths: Sequence[int], blocks: int, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(stage(BasicBlock, width, width, blocks) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [blocks(branch) for blocks, branch in zip(self.branches, branches, strict=True)]
        fused = []
        for paths, target in zip(self.fuse_layers, branches, strict=True):
            assert isinstance(paths, nn.ModuleList)
            size = target.shape[-2:]
            given = [path(branch) for path, branch in zip(paths, branches, strict=True)]
            total = _resized(given[0], size, self.align_corners)
            for part in given[1:]:
                total = total + _resized(part, size, self.align_corners)
            fused.append(torch.relu(total))
        return fused


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        return ConvNormAct(widths[source], widths[target], 1, activation=None)
    down = partial(ConvNormAct, kernel_size=3, stride=2, padding=1)
    halvings = [down(widths[source], widths[source]) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, down(widths[source], widths[target], activation=None))


def _resized(x: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    return x if x.shape[-2:] == size else upsample_bilinear2d(x, size, align_corners=align_corners)


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(channels, channels, 1, bias=True), DilatedConv2d(channels, num_classes, 1))


_OUTER = (
    (r"((?:conv|bn)[12]\..+|layer1\..+)", r"\1"),
    *((rf"stage{s}\.(.+)", rf"stages.{s - 2}.exchanges.\1") for s in (2, 3, 4)),
    (r"transition1\.0\.([01]\..+)", r"stages.0.transition.0.\1"),
    (r"transition1\.1\.0\.([01]\..+)", r"stages.0.transition.1.\1"),
    (r"transition2\.2\.0\.([01]\..+)", r"stages.1.transition.0.\1"),
    (r"transition3\.3\.0\.([01]\..+)", r"stages.2.transition.0.\1"),
    (r"((?:last_layer|aux_head)\.[013]\..+)", r"\1"),
    *OCR_RULES,
)
_INNER = (
    (r"(last_layer|aux_head)\.0\.(\w+)", r"\1.0.conv.\2"),
    (r"(last_layer|aux_head)\.1\.(\w+)", r"\1.0.norm.\2"),
    (r"(last_layer|aux_head)\.3\.(\w+)", r"\1.1.\2"),
    (r"(.*\.(?:transition\.\d|fuse_layers\.\d\.\d(?:\.\d)?))\.0\.(\w+)", r"\1.conv.\2"),
    (r"(.*\.(?:transition\.\d|fuse_layers\.\d\.\d(?:\.\d)?))\.1\.(\w+)", r"\1.norm.\2"),
    (r"(ocr\..+)", r"\1"),
    *residual.RULES,
)


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    head = "ocr.classifier" if any(key.startswith("ocr.") for key in state) else "last_layer.1"
    return {"num_classes": state[f"{head}.weight"].shape[0], "in_channels": state["conv1.conv.weight"].shape[1]}


def _entry(name: str, **options: Any) -> Entry:
    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return official.renamed(name, official.renamed(name, state, _OUTER), _INNER)

    return Entry(partial(HRNet, **options), convert, _options_of)


MODELS = {
    "hrnet_w18_small_v1": _entry("hrnet_w18_small_v1", width=16, first=(1, 32), blocks=2, modules=(1, 1, 1)),
    "hrnet_w18_small_v2": _entry("hrnet_w18_small_v2", width=18, first=(2, 64), blocks=2, modules=(1, 3, 2)),
    "hrnet_w18": _entry("hrnet_w18", width=18),
    "hrnet_w32": _entry("hrnet_w32", width=32),
    "hrnet_w48": _entry("hrnet_w48", width=48),
    "hrnet_w48_ocr": _entry("hrnet_w48_ocr", width=48, ocr=True),
}
