"""Dilated networks: Dilation8 (CamVid, VOC), Dilation7 (KITTI) and Dilation10 (Cityscapes).

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions" (ICLR 2016), with the layers of the authors'
Caffe definitions: a front end, VGG-16 whose last two poolings became dilations, makes scores at 1/8 from an image
padded by 186 pixels a side, for its convolutions have no padding; a context module of dilated convolutions refines
them. The forward pass reflects the image by 186 pixels itself, so that sides need at least 187, and interpolates the
logits by 8; the official output (``raw_output=True``) is that of an image already padded, at ceil((size - 372) / 8),
and for Dilation10 after its transposed convolution by 8. Images are BGR, 0 to 255, minus the mean: (110.70, 108.78,
105.41) for CamVid, (102.93, 111.36, 116.52) for VOC, (72.39, 82.91, 73.16) for Cityscapes.

Keys, those of Caffe: conv1_1 to conv5_3, fc6, fc7, final; ctx_conv1_1, ctx_conv1_2, ctx_conv2_1 and so on, ctx_fc1,
ctx_final, and for Dilation10 ctx_upsample. For VOC fc-final, and ct_ in the place of ctx_.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segops.models import official, vgg
from segops.models.bilinear import BilinearConvTranspose2d
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import DilatedConv2d, MaxPool2d
from segops.ops.upsample_bilinear import upsample_bilinear2d

MARGIN = 186
STRIDE = 8
LARGE_WIDTHS = (2, 2, 4, 8, 16, 32, 32)
"""Channels of the large context module's layers, in units of the number of classes."""


class FrontEnd(nn.Module):
    """VGG-16 and its classifier without padding, at 1/8: [N, C, H, W] to scores [N, K, ceil((H - 372) / 8), ...].

    Convolutions begin as He's (He et al., 2015), where the paper takes them from training on ImageNet, and the last as
    N(0, 0.001^2), which is the authors' code.
    """

    def __init__(self, num_classes: int, in_channels: int, dropout: float, width: int) -> None:
        super().__init__()
        wide = vgg.CLASSIFIER_MULTIPLE * width
        conv = partial(vgg.ConvReLU, kernel_size=3)
        self.stages = nn.ModuleList(vgg.encoder(in_channels, conv, width, dilations=(1, 1, 1, 1, 2)))
        self.pool = MaxPool2d(2, ceil_mode=True)
        self.fc6 = vgg.ConvReLU(8 * width, wide, 7, dilation=4)
        self.fc7 = vgg.ConvReLU(wide, wide, 1)
        self.dropout = nn.Dropout(dropout)
        self.final = DilatedConv2d(wide, num_classes, 1)
        vgg.initialise(self)
        nn.init.normal_(self.final.weight, std=0.001)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place < 3:
                x = self.pool(x)
        return self.final(self.dropout(self.fc7(self.dropout(self.fc6(x)))))


def context_module(channels: int, dilations: tuple[int, ...], large: bool) -> nn.Sequential:
    """3x3 convolutions and ReLUs with one dilation after another, and a 1x1 convolution; the size stays.

    It begins as the identity, or for the large one nearly so: section 3 of the paper, with noise of N(0, 0.01^2).

    Args:
        channels: K, of input and output.
        dilations: of the 3x3 convolutions.
        large: widen the layers to `LARGE_WIDTHS` and pad all at once, in the first of them.
    """
    widths = [channels, *(channels * multiple for multiple in (LARGE_WIDTHS if large else (1,) * len(dilations)))]
    paddings = (sum(dilations), *(0,) * (len(dilations) - 1)) if large else dilations
    layers: list[DilatedConv2d] = [
        vgg.ConvReLU(i, o, 3, padding=padding, dilation=dilation)
        for (i, o), padding, dilation in zip(pairwise(widths), paddings, dilations, strict=True)
    ]
    layers.append(DilatedConv2d(widths[-1], channels, 1))
    for layer in layers:
        _begin_as_identity(layer, channels, large)
    return nn.Sequential(*layers)


def _begin_as_identity(conv: nn.Conv2d, channels: int, large: bool) -> None:
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    if large:
        nn.init.normal_(conv.weight, std=0.01)
    else:
        nn.init.zeros_(conv.weight)
    # Channels in groups, one for each class: a group at the input is passed on to the same one at the output.
    outputs, inputs = torch.arange(conv.out_channels)[:, None], torch.arange(conv.in_channels)
    same = outputs * channels // conv.out_channels == inputs * channels // conv.in_channels
    gain = channels / (conv.in_channels + conv.out_channels) if large else 1.0
    with torch.no_grad():
        conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2].masked_fill_(same, gain)


class DilatedNet(SegmentationModel):
    """A front end and a context module.

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        dilations: of the context module.
        large: use the wide context module, that of VOC.
        upsample: end with a transposed convolution by 8, bilinear and frozen, that of Cityscapes.
        dropout: probability after fc6 and fc7.
        width: channels of the first stage, to which the front end's others are in proportion; 64 is the published
            network.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        dilations: tuple[int, ...],
        large: bool = False,
        upsample: bool = False,
        dropout: float = 0.5,
        width: int = vgg.WIDTH,
    ) -> None:
        super().__init__()
        self.front_end = FrontEnd(num_classes, in_channels, dropout, width)
        self.context = context_module(num_classes, dilations, large)
        self.upsample = (
            BilinearConvTranspose2d(num_classes, 2 * STRIDE, STRIDE, STRIDE // 2, groups=num_classes)
            if upsample
            else None
        )

    def official_output(self, input: Tensor) -> Tensor:
        """Logits of an image that is already padded by 186 pixels a side."""
        height, width = input.shape[-2:]
        if min(height, width) <= 2 * MARGIN:
            raise ValueError(
                f"segops.models.DilatedNet: with raw_output=True the image is one already padded by {MARGIN} pixels a "
                f"side, at least {2 * MARGIN + 1} x {2 * MARGIN + 1}, got {height} x {width}"
            )
        logits: Tensor = self.context(self.front_end(input))
        return logits if self.upsample is None else self.upsample(logits)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        """Logits at 1/8 where sides are multiples of 8; else, and for Dilation10, at the image's size.

        A coarse pixel covers 8 x 8 pixels. Where the last row or column covers some beyond the image, these are cut
        off after interpolation by 8: to stretch the logits to the image's size would move them by up to 7 pixels.
        """
        height, width = input.shape[-2:]
        if min(height, width) <= MARGIN:
            raise ValueError(
                f"segops.models.DilatedNet: the image is reflected by {MARGIN} pixels a side and must have at least "
                f"{MARGIN + 1} x {MARGIN + 1}, got {height} x {width}"
            )
        logits = self.official_output(F.pad(input, [MARGIN] * 4, mode="reflect"))
        if self.upsample is None:
            if height % STRIDE == 0 and width % STRIDE == 0:
                return [logits]
            logits = upsample_bilinear2d(logits, scale_factor=float(STRIDE))
        return [logits[..., :height, :width]]


DILATIONS_8 = (1, 1, 2, 4, 8, 16, 1)
DILATIONS_7 = (1, 1, 2, 4, 8, 1)
DILATIONS_10 = (1, 1, 2, 4, 8, 16, 32, 64, 1)


def _convert(name: str, layers: int, final: str, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ["conv1_1", "conv1_2", *(f"conv{i}_1" for i in range(2, layers - 1)), "fc1", "final"]
    rules = [
        *vgg.conv_rules("front_end.stages"),
        (r"(fc[67])\.(weight|bias)", r"front_end.\1.\2"),
        (rf"{final}\.(weight|bias)", r"front_end.final.\1"),
        *((rf"{prefix}{layer}\.(weight|bias)", rf"context.{place}.\1") for place, layer in enumerate(names)),
    ]
    if name == "dilation10_cityscapes":
        rules.append((rf"{prefix}upsample\.weight", "upsample.weight"))
    return official.renamed(name, state, rules)


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "num_classes": state["front_end.final.weight"].shape[0],
        **vgg.options_of(state["front_end.stages.0.0.weight"]),
    }


def _entry(name: str, dilations: tuple[int, ...], final: str = "final", prefix: str = "ctx_", **options: Any) -> Entry:
    build = partial(DilatedNet, dilations=dilations, **options)
    return Entry(build, partial(_convert, name, len(dilations), final, prefix), _options_of)


MODELS = {
    "dilation8_camvid": _entry("dilation8_camvid", DILATIONS_8),
    "dilation7_kitti": _entry("dilation7_kitti", DILATIONS_7),
    "dilation10_cityscapes": _entry("dilation10_cityscapes", DILATIONS_10, upsample=True),
    "dilation8_voc": _entry("dilation8_voc", DILATIONS_8, "fc-final", "ct_", large=True),
}
