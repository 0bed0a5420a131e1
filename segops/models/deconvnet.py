"""DeconvNet.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation" (ICCV 2015), with the layers of the
authors' Caffe definition: VGG-16 with batch norm down to one pixel (fc6, fc7), and its mirror image of unpooling and
transposed convolutions. Images of 224 x 224, or of any other multiples of 32 that are no less; BGR, 0 to 255.

The 3x3 transposed convolutions have stride 1 and padding 1, and such a one is a convolution with the kernel turned
round: they are stored as convolutions, and checkpoints are turned when they are converted.

Keys, for stage s and place i in it, both from 1: conv{s}_{i}, bn{s}_{i}, fc6, bnfc6, fc7, bnfc7, fc6-deconv,
fc6-deconv-bn, deconv{s}_{i}, debn{s}_{i}, and seg-score-voc or seg-score. Batch norms have weight, bias, running_mean
and running_var, or in all of the network a scale and a shift alone, named weight and bias or scale and shift.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segops.models import official, vgg
from segops.models.registry import Entry
from segops.models.unpooling import EPS, UnpoolingModel, as_convolution, norm_rules, with_statistics
from segops.nn import ConvNormAct, DilatedConv2d

MULTIPLE = 32
LEAST = 224


class ConvTransposeNormReLU(nn.Module):
    """A transposed convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size)
        self.norm = nn.BatchNorm2d(out_channels, EPS)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(input)))


class DeconvNet(UnpoolingModel):
    """VGG-16 with its classifier, and their mirror image.

    As in the authors' definition the layers after fc7 begin with weights of N(0, 0.01^2) and zero biases. VGG-16's
    convolutions, which the paper takes from training on ImageNet, begin as He's (He et al., 2015).

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        width: channels of the first stage, to which all others are in proportion; 64 is the published network.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = vgg.WIDTH) -> None:
        block = partial(ConvNormAct, eps=EPS, bias=True)
        conv = partial(block, kernel_size=3, padding=1)
        classifier = DilatedConv2d(width, num_classes, 1)
        super().__init__(vgg.encoder(in_channels, conv, width), vgg.decoder(conv, width), classifier, ceil_mode=False)
        wide, deepest = vgg.CLASSIFIER_MULTIPLE * width, vgg.STAGES[-1][0] * width
        self.bottleneck = nn.Sequential(
            block(deepest, wide, 7), block(wide, wide, 1), ConvTransposeNormReLU(wide, deepest, 7)
        )
        vgg.initialise(self)
        for part in (self.bottleneck[2], self.decoder, self.classifier):
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.normal_(module.weight, std=0.01)
                    assert module.bias is not None
                    nn.init.zeros_(module.bias)

    def check_size(self, height: int, width: int) -> None:
        if height < LEAST or width < LEAST or height % MULTIPLE or width % MULTIPLE:
            raise ValueError(
                f"segops.models.DeconvNet: the image's sides must be multiples of {MULTIPLE} and at least {LEAST}, "
                f"got {height} x {width}"
            )


_BOTTLENECK = (("fc6", "bnfc6"), ("fc7", "bnfc7"), ("fc6-deconv", "fc6-deconv-bn"))


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = [(conv, norm, f"bottleneck.{place}") for place, (conv, norm) in enumerate(_BOTTLENECK)]
    for s, i in vgg.positions():
        layers.append((f"conv{s}_{i}", f"bn{s}_{i}", f"encoder.{s - 1}.{i - 1}"))
        layers.append((f"deconv{s}_{i}", f"debn{s}_{i}", f"decoder.{5 - s}.{i - 1}"))
    rules = [(r"seg-score(?:-voc)?\.(weight|bias)", r"classifier.\1")]
    for conv, norm, ours in layers:
        rules += [(rf"{conv}\.(weight|bias)", rf"{ours}.conv.\1"), *norm_rules(norm, f"{ours}.norm")]
    turned = {
        key: as_convolution(value) if key.startswith("deconv") and value.ndim == 4 else value
        for key, value in state.items()
    }
    return with_statistics(official.renamed("deconvnet", turned, rules))


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "num_classes": state["classifier.weight"].shape[0],
        **vgg.options_of(state["encoder.0.0.conv.weight"]),
    }


MODELS = {"deconvnet": Entry(DeconvNet, _convert, _options_of)}
