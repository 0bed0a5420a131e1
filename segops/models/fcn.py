"""Fully convolutional networks: FCN-32s, FCN-16s, FCN-8s and FCN-8s trained at once.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015, PAMI 2017), with the
layers of the authors' Caffe definitions: VGG-16 with its classifier as convolutions, scores of pool4 and pool3 added
on the way up. Upsampling is bilinear, by transposed convolutions that training does not change. Any image size: the
first convolution pads by 100 pixels a side, and crops at fixed offsets undo that. Images are BGR, 0 to 255, minus
(104.00699, 116.66877, 122.67892).

Keys, those of Caffe and of wkentaro/pytorch-fcn: conv1_1 to conv5_3, fc6, fc7, score_fr, score_pool4, score_pool3, and
upscore (32s), upscore2 and upscore16 (16s), or upscore2, upscore_pool4 and upscore8 (8s).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segops.models import official, vgg
from segops.models.bilinear import BilinearConvTranspose2d
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import DilatedConv2d, MaxPool2d

PADDING = 100
LAST_OFFSET = {32: 19, 16: 27, 8: 31}
"""Of the image in the last upsampling's result, by output stride."""

SKIPS = ((8, 5, 0.01), (4, 9, 0.0001))
"""Of pool4 and pool3: channels in units of the first stage's, offset of the crop, factor in training at once."""


class Skip(nn.Module):
    """Scores upsampled by 2, and those of a finer map added to them.

    Args:
        channels: of the finer map.
        num_classes: channels K of the scores.
        offset: where in the finer map the upsampled one begins.
        scale: factor of the finer map before it is scored.
        learnable: let training change the upsampling.
    """

    def __init__(self, channels: int, num_classes: int, offset: int, scale: float, learnable: bool) -> None:
        super().__init__()
        self.upscore = BilinearConvTranspose2d(num_classes, 4, 2, learnable=learnable)
        self.score = _score(channels, num_classes)
        self.offset, self.scale = offset, scale

    def forward(self, scores: Tensor, finer: Tensor) -> Tensor:
        upsampled = self.upscore(scores)
        scored = self.score(finer if self.scale == 1 else finer * self.scale)
        return upsampled + _crop(scored, self.offset, upsampled)


class FCN(SegmentationModel):
    """One of the four networks.

    As in the authors' code the layers of scores begin at zero, and upsampling bilinear; VGG-16's convolutions, which
    the paper takes from training on ImageNet, begin as He's (He et al., 2015).

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        stride: 32, 16 or 8, of the finest scores.
        at_once: scale pool4 by 0.01 and pool3 by 0.0001, which lets all of the network be trained together.
        learnable_upsampling: let training change the transposed convolutions.
        dropout: probability after fc6 and fc7.
        width: channels of the first stage, to which all others are in proportion; 64 is the published network.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        stride: int = 32,
        at_once: bool = False,
        learnable_upsampling: bool = False,
        dropout: float = 0.5,
        width: int = vgg.WIDTH,
    ) -> None:
        super().__init__()
        if stride not in LAST_OFFSET:
            raise ValueError(f"segops.models.FCN: stride must be one of {list(LAST_OFFSET)}, got {stride}")
        wide = vgg.CLASSIFIER_MULTIPLE * width
        self.encoder = nn.ModuleList(vgg.encoder(in_channels, partial(vgg.ConvReLU, kernel_size=3, padding=1), width))
        self.pool = MaxPool2d(2, ceil_mode=True)
        self.fc6 = vgg.ConvReLU(8 * width, wide, 7)
        self.fc7 = vgg.ConvReLU(wide, wide, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.score = _score(wide, num_classes)
        self.skips = nn.ModuleList(
            Skip(multiple * width, num_classes, offset, scale if at_once else 1, learnable_upsampling)
            for multiple, offset, scale in SKIPS[: list(LAST_OFFSET).index(stride)]
        )
        self.upscore = BilinearConvTranspose2d(num_classes, 2 * stride, stride, learnable=learnable_upsampling)
        self.last_offset = LAST_OFFSET[stride]
        for part in (self.encoder, self.fc6, self.fc7):
            vgg.initialise(part)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        x = F.pad(input, [PADDING - 1] * 4)  # and the last pixel is the first convolution's own padding
        pools = []
        for stage in self.encoder:
            x = self.pool(stage(x))
            pools.append(x)
        scores = self.score(self.dropout(self.fc7(self.dropout(self.fc6(pools.pop())))))
        for skip in self.skips:
            scores = skip(scores, pools.pop())
        return [_crop(self.upscore(scores), self.last_offset, input)]


def _score(channels: int, num_classes: int) -> DilatedConv2d:
    score = DilatedConv2d(channels, num_classes, 1)
    for parameter in score.parameters():
        nn.init.zeros_(parameter)
    return score


def _crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return x[..., offset : offset + height, offset : offset + width]


def _convert(name: str, upsampling: dict[str, str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        *vgg.conv_rules("encoder"),
        (r"(fc[67])\.(weight|bias)", r"\1.\2"),
        (r"score_fr\.(weight|bias)", r"score.\1"),
    ]
    for place, pool in enumerate(("pool4", "pool3")[: len(upsampling) - 1]):
        rules.append((rf"score_{pool}\.(weight|bias)", rf"skips.{place}.score.\1"))
    rules += [(rf"{official_name}\.weight", f"{ours}.weight") for official_name, ours in upsampling.items()]
    return official.renamed(name, state, rules)


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"num_classes": state["score.weight"].shape[0], **vgg.options_of(state["encoder.0.0.weight"])}


def _entry(name: str, upsampling: dict[str, str], **options: Any) -> Entry:
    return Entry(partial(FCN, **options), partial(_convert, name, upsampling), _options_of)


_UP_8S = {"upscore2": "skips.0.upscore", "upscore_pool4": "skips.1.upscore", "upscore8": "upscore"}
MODELS = {
    "fcn32s": _entry("fcn32s", {"upscore": "upscore"}, stride=32),
    "fcn16s": _entry("fcn16s", {"upscore2": "skips.0.upscore", "upscore16": "upscore"}, stride=16),
    "fcn8s": _entry("fcn8s", _UP_8S, stride=8),
    "fcn8s_atonce": _entry("fcn8s_atonce", _UP_8S, stride=8, at_once=True),
}
