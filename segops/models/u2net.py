"""U2-Net and U2-Net-P: a U-Net whose every stage is a U-Net (Qin et al., Pattern Recognition 106, 2020).

:class:`RSU` is the block, :class:`U2Net` the network of eleven of them, :data:`U2NET` and :data:`U2NETP` its tables.

Official keys (the published ``u2net.pth`` and ``u2netp.pth``): ``stage{1..6}`` and ``stage{1..5}d``, in each
``rebnconvin``, ``rebnconv{n}`` and ``rebnconv{n}d`` of ``conv_s1`` and ``bn_s1``; ``side{1..6}``; ``outconv``.
Parameters start as PyTorch's layers do, as in the official code.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import ConvNormAct, DilatedConv2d, MaxPool2d, UpsampleCat

Blocks = tuple[tuple[int | None, int, int], ...]

U2NET: Blocks = (
    (7, 32, 64), (6, 32, 128), (5, 64, 256), (4, 128, 512), (None, 256, 512), (None, 256, 512),
    (None, 256, 512), (4, 128, 256), (5, 64, 128), (6, 32, 64), (7, 16, 64),
)  # fmt: skip
U2NETP: Blocks = tuple((levels, 16, 64) for levels, _, _ in U2NET)
"""(levels, channels inside, channels out) of each block as they run, six of the encoder and five of the decoder."""


def conv3x3(in_channels: int, out_channels: int, dilation: int = 1) -> ConvNormAct:
    return ConvNormAct(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=True)


def halve() -> MaxPool2d:
    return MaxPool2d(2, 2, ceil_mode=True)


class RSU(nn.Module):
    """A residual U-block (section 3.1): a U-Net of 3x3 convolutions, added to the convolution it starts from.

    Args:
        in_channels, mid_channels, out_channels: I, M and O of the paper.
        levels: L of RSU-L, each of which but the last two halves the size of the one above it; None is RSU-4F, of four
            levels that keep the size and dilate by 1, 2, 4 and 8.

    Shape:
        [N, I, H, W] to [N, O, H, W].
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, levels: int | None) -> None:
        super().__init__()
        dilations = [1, 2, 4, 8] if levels is None else [1] * (levels - 1) + [2]
        *outer, bottom = dilations
        into = [out_channels] + [mid_channels] * (len(outer) - 1)
        out_of = [mid_channels] * (len(outer) - 1) + [out_channels]
        self.input = conv3x3(in_channels, out_channels)
        self.encoder = nn.ModuleList(conv3x3(c, mid_channels, d) for c, d in zip(into, outer, strict=True))
        self.bottom = conv3x3(mid_channels, mid_channels, bottom)
        self.decoder = nn.ModuleList(
            conv3x3(2 * mid_channels, c, d) for c, d in zip(out_of, reversed(outer), strict=True)
        )
        self.down = nn.Identity() if levels is None else halve()
        self.up = UpsampleCat(order="up_first")

    def forward(self, input: Tensor) -> Tensor:
        start = self.input(input)
        x = start
        skips: list[Tensor] = []
        for conv in self.encoder:
            x = conv(self.down(x) if skips else x)
            skips.append(x)
        x = self.bottom(x)
        for conv in self.decoder:
            x = conv(self.up(x, skips.pop()))
        # Without gradients, the sum needs no memory of its own: x is this block's alone.
        return x + start if torch.is_grad_enabled() else x.add_(start)


class U2Net(SegmentationModel):
    """Eleven residual U-blocks in the shape of a U-Net, a side output of each depth, and their fusion.

    Any size of image. The logits are, finest first: the fusion d0 and the sides d1 ... d6, of which d2 ... d6 are at
    1/2 ... 1/32 of the size, rounded up; d0 needs all of them. The official output is (d0, ..., d6), each at the
    size of the image and after a sigmoid.

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        blocks: :data:`U2NET`, :data:`U2NETP`, or another table of an odd length.
    """

    has_side_outputs = True

    def __init__(self, num_classes: int, in_channels: int, blocks: Blocks = U2NET) -> None:
        super().__init__()
        depth = (len(blocks) + 1) // 2
        outputs = [out for _, _, out in blocks]
        encoded, decoded = outputs[:depth], outputs[depth:]
        up_and_skip = zip([encoded[-1], *decoded], encoded[-2::-1], strict=False)
        inputs = [in_channels, *encoded[:-1], *(up + skip for up, skip in up_and_skip)]
        built = [RSU(c, mid, out, levels) for c, (levels, mid, out) in zip(inputs, blocks, strict=True)]
        self.encoder = nn.ModuleList(built[:depth])
        self.decoder = nn.ModuleList(built[depth:])
        finest_first = [*reversed(decoded), encoded[-1]]
        self.sides = nn.ModuleList(DilatedConv2d(c, num_classes, 3, padding=1) for c in finest_first)
        self.fuse = DilatedConv2d(depth * num_classes, num_classes, 1)
        self.down = halve()
        self.up = UpsampleCat(order="up_first")

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        skips = [self.encoder[0](input)]
        for block in self.encoder[1:]:
            skips.append(block(self.down(skips[-1])))
        features = [skips.pop()]
        for block in self.decoder:
            features.append(block(self.up(features[-1], skips.pop())))
        sides = [side(x) for side, x in zip(self.sides, reversed(features), strict=True)]
        fused = self.fuse(torch.cat([self.to_size(side, *input.shape[-2:]) for side in sides], 1))
        return [fused, *sides] if side_outputs else [fused]

    def official_output(self, input: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.to_size(x, *input.shape[-2:]).sigmoid() for x in self.coarse_logits(input, True))


def _rules() -> list[tuple[str, str]]:
    rules = [(rf"side{n}\.(\w+)", rf"sides.{n - 1}.\1") for n in range(1, 7)]
    rules.append((r"outconv\.(\w+)", r"fuse.\1"))
    blocks = [(f"stage{n}", f"encoder.{n - 1}") for n in range(1, 7)]
    blocks += [(f"stage{n}d", f"decoder.{5 - n}") for n in range(5, 0, -1)]
    for (stage, block), (levels, _, _) in zip(blocks, U2NET, strict=True):
        last = levels or 4
        layers = {"rebnconvin": "input", f"rebnconv{last}": "bottom"}
        layers |= {f"rebnconv{n}": f"encoder.{n - 1}" for n in range(1, last)}
        layers |= {f"rebnconv{n}d": f"decoder.{last - 1 - n}" for n in range(1, last)}
        for layer, ours in layers.items():
            rules.append((rf"{stage}\.{layer}\.conv_s1\.(\w+)", rf"{block}.{ours}.conv.\1"))
            rules.append((rf"{stage}\.{layer}\.bn_s1\.(\w+)", rf"{block}.{ours}.norm.\1"))
    return rules


def _convert(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return official.renamed(name, state, _rules())


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "num_classes": state["fuse.weight"].shape[0],
        "in_channels": state["encoder.0.input.conv.weight"].shape[1],
    }


MODELS = {
    "u2net": Entry(partial(U2Net, blocks=U2NET), partial(_convert, "u2net"), _options_of, num_classes=1),
    "u2netp": Entry(partial(U2Net, blocks=U2NETP), partial(_convert, "u2netp"), _options_of, num_classes=1),
}
