"""Dilated residual networks, variants C and D, for segmentation.

Yu, Koltun and Funkhouser, "Dilated Residual Networks" (CVPR 2017): a residual network whose last two poolings became
dilations, followed by two stages without residual connections that take away the grid such dilations leave. Variant C
begins with two residual stages and ends with two stages of blocks, D has one plain convolution in each of these places.
Logits are at 1/8 and interpolated to the image's size. The official output (``raw_output=True``) is (log-softmax of the
logits after a frozen transposed convolution by 8, at ceil(size / 8) * 8; the logits), which differs from interpolation
at the border, where the transposed convolution reads zeros.

Keys, those of the authors' PyTorch code: base.0.{0,1} (D) or base.0 and base.1 (C) for the first convolution and its
norm, base.1 to base.8 (D) or base.3 to base.10 (C) for the stages, in which plain convolutions are base.N.{0,1} and
blocks base.N.B.{conv1,bn1,...,downsample.{0,1}}; seg; up. Shortcuts that C-58 holds but
does not use are dropped. Weights begin as there: normal, of variance 2 / (k k C_out).
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from segops.models import official, residual
from segops.models.bilinear import BilinearConvTranspose2d
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.models.residual import BasicBlock, Bottleneck, stage
from segops.nn import ConvNormAct, DilatedConv2d

WIDTHS = (16, 32, 64, 128, 256, 512, 512, 512)
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)


class DRN(SegmentationModel):
    """A dilated residual network of output stride 8.

    Args:
        num_classes, in_channels: of logits and images.
        variant: "c" or "d".
        block: of stages 3 to 6.
        blocks: in each of stages 3 to 6.

    Shape:
        [N, in_channels, H, W] to logits [N, num_classes, H, W].
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        variant: str,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, WIDTHS[0], 7, padding=3)
        channels = WIDTHS[0]
        stages: list[nn.Module] = []
        for i, (width, stride, dilation) in enumerate(zip(WIDTHS, STRIDES, DILATIONS, strict=True)):
            if 2 <= i < 6:
                stages.append(stage(block, channels, width, blocks[i - 2], stride, dilation))
                channels = width * block.expansion
                continue
            if variant == "c":
                stages.append(nn.Sequential(BasicBlock(channels, width, stride, dilation, residual=i < 2)))
            else:
                stages.append(ConvNormAct(channels, width, 3, stride, dilation, dilation))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.seg = DilatedConv2d(channels, num_classes, 1)
        self.up = BilinearConvTranspose2d(num_classes, 16, stride=8, padding=4, groups=num_classes)
        for module in self.modules():
            if isinstance(module, DilatedConv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
        assert self.seg.bias is not None
        nn.init.zeros_(self.seg.bias)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        return [self.seg(self.stages(self.stem(input)))]

    def official_output(self, input: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.coarse_logits(input)[0]
        return self.up(logits).log_softmax(1), logits


def _convert(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    c = name.startswith("drn_c")
    stem = {"0": "stem.conv", "1": "stem.norm"} if c else {"0.0": "stem.conv", "0.1": "stem.norm"}
    first = 3 if c else 1
    rules = [(rf"base\.{re.escape(old)}\.(\w+)", rf"{new}.\1") for old, new in stem.items()]
    rules += [(rf"base\.{i + first}\.(.+)", rf"stages.{i}.\1") for i in range(len(WIDTHS))]
    inside = [*residual.RULES, (r"(.*)", r"\1")]
    if not c:
        plain = r"(stages\.[0167])\."
        inside = [(plain + r"0\.(weight)", r"\1.conv.\2"), (plain + r"1\.(\w+)", r"\1.norm.\2"), *inside]
    ours = official.renamed(name, state, [*rules, (r"((?:seg|up)\..+)", r"\1")])
    return official.renamed(name, ours, inside, drop=[r"stages\.[67]\.0\.downsample\..*"] if c else [])


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"num_classes": state["seg.weight"].shape[0], "in_channels": state["stem.conv.weight"].shape[1]}


def _entry(name: str, block: type[BasicBlock] | type[Bottleneck], *blocks: int) -> Entry:
    build = partial(DRN, variant=name[4], block=block, blocks=blocks)
    return Entry(build, partial(_convert, name), _options_of)


MODELS = {
    "drn_c_26": _entry("drn_c_26", BasicBlock, 2, 2, 2, 2),
    "drn_c_42": _entry("drn_c_42", BasicBlock, 3, 4, 6, 3),
    "drn_c_58": _entry("drn_c_58", Bottleneck, 3, 4, 6, 3),
    "drn_d_22": _entry("drn_d_22", BasicBlock, 2, 2, 2, 2),
    "drn_d_38": _entry("drn_d_38", BasicBlock, 3, 4, 6, 3),
    "drn_d_54": _entry("drn_d_54", Bottleneck, 3, 4, 6, 3),
    "drn_d_105": _entry("drn_d_105", Bottleneck, 3, 4, 23, 3),
}
