"""torchvision's FCN and DeepLabV3 on a dilated ResNet-50 of output stride 8.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015), and Chen, Papandreou,
Schroff and Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), as torchvision builds them:
the last two stages of ResNet-50 keep the size and dilate, an auxiliary head reads the stage before the last. The
official output (``raw_output=True``) is {"out": ..., "aux": ...} at the image's size.

Keys, torchvision's: backbone.{conv1,bn1}, backbone.layerN.B.*, classifier.*, aux_classifier.{0,1,4}. A checkpoint
without aux_classifier makes a network of ``aux=False``. Weights begin as in torchvision: the backbone's convolutions
normal of variance 2 / (k k C_out), the heads as torch's defaults.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segops.models import official, residual
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.models.residual import Bottleneck, stage
from segops.nn import ConvNormAct, DilatedConv2d, MaxPool2d
from segops.ops.upsample_bilinear import upsample_bilinear2d


class Backbone(nn.Module):
    """ResNet-50 with dilation: [N, C, H, W] to the features of its last two stages, [N, 1024 and 2048, H/8, W/8]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, 64, 7, 2, 3)
        self.pool = MaxPool2d(3, 2, 1)
        self.layer1 = stage(Bottleneck, 64, 64, 3)
        self.layer2 = stage(Bottleneck, 256, 128, 4, stride=2)
        self.layer3 = stage(Bottleneck, 512, 256, 6, dilation=2, first_dilation=1)
        self.layer4 = stage(Bottleneck, 1024, 512, 3, dilation=4, first_dilation=2)
        for module in self.modules():
            if isinstance(module, DilatedConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer3(self.layer2(self.layer1(self.pool(self.conv1(input)))))
        return x, self.layer4(x)


class FCNHead(nn.Sequential):
    """A 3x3 convolution to a quarter of the channels, and the classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        conv = ConvNormAct(channels, channels // 4, 3, padding=1)
        super().__init__(conv, nn.Dropout(0.1), DilatedConv2d(channels // 4, num_classes, 1))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: [N, C, h, w] through several dilations and the image's mean to [N, 256, h, w]."""

    def __init__(self, channels: int, dilations: tuple[int, ...] = (12, 24, 36), width: int = 256) -> None:
        super().__init__()
        pyramid = [ConvNormAct(channels, width, 3, padding=d, dilation=d) for d in dilations]
        self.convs = nn.ModuleList([ConvNormAct(channels, width, 1), *pyramid])
        self.of_mean = ConvNormAct(channels, width, 1)
        self.project = ConvNormAct((len(dilations) + 2) * width, width, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input: Tensor) -> Tensor:
        mean = self.of_mean(input.mean((2, 3), keepdim=True))
        mean = upsample_bilinear2d(mean, input.shape[-2:])
        x: Tensor = self.project(torch.cat([*(conv(input) for conv in self.convs), mean], dim=1))
        return self.dropout(x)


class DeepLabHead(nn.Sequential):
    """ASPP, a 3x3 convolution, and the classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(ASPP(channels), ConvNormAct(256, 256, 3, padding=1), DilatedConv2d(256, num_classes, 1))


class ResNetSegmentation(SegmentationModel):
    """A dilated ResNet-50, a head on its last stage, in training also an auxiliary one on the stage before.

    Args:
        num_classes, in_channels: of logits and images.
        head: ``head(channels, num_classes)``.
        aux: have the auxiliary head.

    Shape:
        [N, in_channels, H, W] to logits [N, num_classes, H, W], in training and with ``side_outputs=True`` a list of
        the head's and the auxiliary head's.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, head: type[FCNHead] | type[DeepLabHead], aux: bool = True
    ) -> None:
        super().__init__()
        self.backbone = Backbone(in_channels)
        self.classifier = head(2048, num_classes)
        self.aux_classifier = FCNHead(1024, num_classes) if aux else None
        self.has_side_outputs = aux

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        before_last, last = self.backbone(input)
        logits = [self.classifier(last)]
        if side_outputs and self.aux_classifier is not None:
            logits.append(self.aux_classifier(before_last))
        return logits

    def official_output(self, input: Tensor) -> dict[str, Tensor]:
        height, width = input.shape[-2:]
        logits = self.coarse_logits(input, side_outputs=True)
        return {name: self.to_size(x, height, width) for name, x in zip(("out", "aux"), logits, strict=False)}


_FCN_HEAD = ((r"0\.(\w+)", r"0.conv.\1"), (r"1\.(\w+)", r"0.norm.\1"), (r"4\.(\w+)", r"2.\1"))
_DEEPLAB_HEAD = (
    (r"0\.convs\.([0-3])\.0\.(\w+)", r"0.convs.\1.conv.\2"),
    (r"0\.convs\.([0-3])\.1\.(\w+)", r"0.convs.\1.norm.\2"),
    (r"0\.convs\.4\.1\.(\w+)", r"0.of_mean.conv.\1"),
    (r"0\.convs\.4\.2\.(\w+)", r"0.of_mean.norm.\1"),
    (r"0\.project\.0\.(\w+)", r"0.project.conv.\1"),
    (r"0\.project\.1\.(\w+)", r"0.project.norm.\1"),
    (r"1\.(\w+)", r"1.conv.\1"),
    (r"2\.(\w+)", r"1.norm.\1"),
    (r"4\.(\w+)", r"2.\1"),
)


def _entry(name: str, head: type[FCNHead] | type[DeepLabHead], head_rules: tuple[tuple[str, str], ...]) -> Entry:
    rules = [(rf"classifier\.{old}", f"classifier.{new}") for old, new in head_rules]
    rules += [(rf"aux_classifier\.{old}", f"aux_classifier.{new}") for old, new in _FCN_HEAD]

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return official.renamed(name, state, [*rules, *residual.RULES])

    return Entry(partial(ResNetSegmentation, head=head), convert, _options_of)


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "num_classes": state["classifier.2.weight"].shape[0],
        "in_channels": state["backbone.conv1.conv.weight"].shape[1],
        "aux": any(key.startswith("aux_classifier.") for key in state),
    }


MODELS = {
    "fcn_resnet50": _entry("fcn_resnet50", FCNHead, _FCN_HEAD),
    "deeplabv3_resnet50": _entry("deeplabv3_resnet50", DeepLabHead, _DEEPLAB_HEAD),
}
