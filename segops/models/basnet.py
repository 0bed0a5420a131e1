"""BASNet: a network that predicts salient objects, and one that refines their boundaries.

Qin et al., "BASNet: Boundary-Aware Salient Object Detection" (CVPR 2019): ResNet-34 without its first pooling and with
two more stages, a bridge, a decoder with a side output at each depth, and a small U-Net, :class:`Refinement`, of which
the finest logits get a correction.

Official keys: ``inconv``, ``inbn``; ``encoder{1..4}.{B}`` and ``resb{5,6}_{1..3}``, with a ResNet's names in them;
``convbg_{1,m,2}``, ``bnbg_{1,m,2}``; ``conv{6..1}d_{1,m,2}``, ``bn{6..1}d_{1,m,2}``; ``outconv{b,6..1}``; ``refunet``
of ``conv{0..5}``, ``bn{1..5}``, ``conv_d{4..0}``, ``bn_d{4..1}``. Parameters begin as PyTorch's layers do; the
published network starts from an ImageNet ResNet-34.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.models.residual import BasicBlock, stage
from segops.nn import ConvNormAct, DilatedConv2d, MaxPool2d, UpsampleCat


def conv3x3(in_channels: int, out_channels: int, dilation: int = 1) -> ConvNormAct:
    return ConvNormAct(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=True)


def convs3x3(*channels: int, dilations: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    """Three convolutions between four numbers of channels."""
    return nn.Sequential(*map(conv3x3, channels, channels[1:], dilations))


def halve() -> MaxPool2d:
    return MaxPool2d(2, 2, ceil_mode=True)


class Refinement(nn.Module):
    """A U-Net of four levels and one convolution in each: logits [N, K, H, W] plus what it makes of them."""

    LEVELS = 4

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.input = DilatedConv2d(num_classes, width, 3, padding=1)
        self.encoder = nn.ModuleList(conv3x3(width, width) for _ in range(self.LEVELS))
        self.bottom = conv3x3(width, width)
        self.decoder = nn.ModuleList(conv3x3(2 * width, width) for _ in range(self.LEVELS))
        self.output = DilatedConv2d(width, num_classes, 3, padding=1)
        self.down = halve()
        self.up = UpsampleCat(order="up_first")

    def forward(self, input: Tensor) -> Tensor:
        x = self.input(input)
        skips = []
        for conv in self.encoder:
            skips.append(conv(x))
            x = self.down(skips[-1])
        x = self.bottom(x)
        for conv in self.decoder:
            x = conv(self.up(x, skips.pop()))
        return input + self.output(x)


class BASNet(SegmentationModel):
    """The prediction and the refinement network.

    H and W are multiples of 32. The logits are, finest first: the refined ones, the sides d1 ... d6 and that of the
    bridge, of which d2 ... d6 are at 1/2 ... 1/32 of the size and the bridge's at 1/32. The official output is all
    eight, each at the size of the image and after a sigmoid. Without side outputs only d1 and its refinement are
    computed.

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        width: channels of the first stage, to which all others are in proportion; 64 is the published network.
    """

    has_side_outputs = True
    MULTIPLE = 32

    def __init__(self, num_classes: int, in_channels: int, *, width: int = 64) -> None:
        super().__init__()
        w = width
        self.input = conv3x3(in_channels, w)
        self.encoder = nn.ModuleList(
            [
                stage(BasicBlock, w, w, 3),
                stage(BasicBlock, w, 2 * w, 4, stride=2),
                stage(BasicBlock, 2 * w, 4 * w, 6, stride=2),
                stage(BasicBlock, 4 * w, 8 * w, 3, stride=2),
                nn.Sequential(halve(), *stage(BasicBlock, 8 * w, 8 * w, 3)),
                nn.Sequential(halve(), *stage(BasicBlock, 8 * w, 8 * w, 3)),
            ]
        )
        self.bridge = convs3x3(8 * w, 8 * w, 8 * w, 8 * w, dilations=(2, 2, 2))
        self.decoder = nn.ModuleList(
            [
                convs3x3(16 * w, 8 * w, 8 * w, 8 * w, dilations=(1, 2, 2)),
                convs3x3(16 * w, 8 * w, 8 * w, 8 * w),
                convs3x3(16 * w, 8 * w, 8 * w, 4 * w),
                convs3x3(8 * w, 4 * w, 4 * w, 2 * w),
                convs3x3(4 * w, 2 * w, 2 * w, w),
                convs3x3(2 * w, w, w, w),
            ]
        )
        widths = [w, w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w]
        self.sides = nn.ModuleList(DilatedConv2d(c, num_classes, 3, padding=1) for c in widths)
        self.refinement = Refinement(num_classes, w)
        self.up = UpsampleCat(order="up_first")

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        height, width = input.shape[-2:]
        if height % self.MULTIPLE or width % self.MULTIPLE:
            raise ValueError(
                f"segops.models: BASNet needs sides that are multiples of {self.MULTIPLE}, got {height} x {width}"
            )
        x = self.input(input)
        skips = []
        for blocks in self.encoder:
            x = blocks(x)
            skips.append(x)
        features = [self.bridge(x)]
        for convs in self.decoder:
            features.append(convs(self.up(features[-1], skips.pop())))
        finest = self.sides[0](features.pop())
        refined = self.refinement(finest)
        if not side_outputs:
            return [refined]
        return [refined, finest, *(side(x) for side, x in zip(self.sides[1:], reversed(features), strict=True))]

    def official_output(self, input: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.to_size(x, *input.shape[-2:]).sigmoid() for x in self.coarse_logits(input, True))


def _conv_norm(conv: str, norm: str, ours: str) -> list[tuple[str, str]]:
    return [(rf"{conv}\.(\w+)", rf"{ours}.conv.\1"), (rf"{norm}\.(\w+)", rf"{ours}.norm.\1")]


def _block(theirs: str, ours: str) -> list[tuple[str, str]]:
    rules = _conv_norm(rf"{theirs}\.downsample\.0", rf"{theirs}\.downsample\.1", f"{ours}.downsample")
    for n in (1, 2):
        rules += _conv_norm(rf"{theirs}\.conv{n}", rf"{theirs}\.bn{n}", f"{ours}.conv{n}")
    return rules


def _rules() -> list[tuple[str, str]]:
    rules = _conv_norm("inconv", "inbn", "input")
    for s, blocks in enumerate((3, 4, 6, 3)):
        for b in range(blocks):
            rules += _block(rf"encoder{s + 1}\.{b}", f"encoder.{s}.{b}")
    for s in (5, 6):
        for b in (1, 2, 3):  # after the pooling
            rules += _block(f"resb{s}_{b}", f"encoder.{s - 1}.{b}")
    for i, part in enumerate(("1", "m", "2")):
        rules += _conv_norm(f"convbg_{part}", f"bnbg_{part}", f"bridge.{i}")
        for d in range(1, 7):
            rules += _conv_norm(f"conv{d}d_{part}", f"bn{d}d_{part}", f"decoder.{6 - d}.{i}")
    for i, side in enumerate("123456b"):
        rules.append((rf"outconv{side}\.(\w+)", rf"sides.{i}.\1"))
    rules += [(r"refunet\.conv0\.(\w+)", r"refinement.input.\1"), (r"refunet\.conv_d0\.(\w+)", r"refinement.output.\1")]
    rules += _conv_norm(r"refunet\.conv5", r"refunet\.bn5", "refinement.bottom")
    for n in range(1, Refinement.LEVELS + 1):
        rules += _conv_norm(rf"refunet\.conv{n}", rf"refunet\.bn{n}", f"refinement.encoder.{n - 1}")
        decoder = f"refinement.decoder.{Refinement.LEVELS - n}"
        rules += _conv_norm(rf"refunet\.conv_d{n}", rf"refunet\.bn_d{n}", decoder)
    return rules


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return official.renamed("basnet", state, _rules())


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    width, in_channels = state["input.conv.weight"].shape[:2]
    return {"num_classes": state["sides.0.weight"].shape[0], "in_channels": in_channels, "width": width}


MODELS = {"basnet": Entry(BASNet, _convert, _options_of, num_classes=1)}
