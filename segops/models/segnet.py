"""SegNet and SegNet-Basic.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation"
(PAMI 2017), with the layers of the authors' Caffe definitions. The decoder places each value where its pooling found
the maximum. Any image size with ``ceil_mode=True``, which is Caffe's pooling and the default; ``ceil_mode=False`` is
that of the ports to PyTorch, for 32 pixels a side (SegNet-Basic: 16) and more. The two agree where the sides are
multiples of that. Images are BGR, 0 to 255.

Keys of "segnet", for stage s and place i in it, both from 1:

* Caffe: conv{s}_{i}, conv{s}_{i}_bn, and for the decoder conv{s}_{i}_D, conv{s}_{i}_D_bn;
* delta-onera/segnet_pytorch: conv{s}{i}, bn{s}{i}, conv{s}{i}d, bn{s}{i}d;
* vinceecws/SegNet_PyTorch: ConvEn{s}{i}, BNEn{s}{i}, ConvDe{s}{i}, BNDe{s}{i};
* say4n/pytorch-segnet: encoder_conv_{s}{i}.{0,1}, decoder_convtr_{s}{i}.{0,1}, both from 0, with transposed
  convolutions in the decoder.

Keys of "segnet_basic", for stage s: conv{s}, conv{s}_bn, conv_decode{s}, conv_decode{s}_bn, conv_classifier.

Batch norms have weight, bias, running_mean and running_var, or in all of the network a scale and a shift alone, named
weight and bias or scale and shift. The ports' checkpoints say nothing of the pooling: give load_official their
``ceil_mode=False``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from segops.models import official, vgg
from segops.models.registry import Entry
from segops.models.unpooling import EPS, UnpoolingModel, as_convolution, norm_rules, with_statistics
from segops.nn import ConvNormAct, DilatedConv2d


class SegNet(UnpoolingModel):
    """VGG-16's convolutions with batch norm, and their mirror image.

    Convolutions begin as He's (He et al., 2015), as in the paper.

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        ceil_mode: of the pooling.
        width: channels of the first stage, to which all others are in proportion; 64 is the published network.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, ceil_mode: bool = True, width: int = vgg.WIDTH
    ) -> None:
        conv = partial(ConvNormAct, kernel_size=3, padding=1, eps=EPS, bias=True)
        decoder = vgg.decoder(conv, width)
        del decoder[-1][-1]  # the classifier is in its place
        classifier = DilatedConv2d(width, num_classes, 3, padding=1)
        super().__init__(vgg.encoder(in_channels, conv, width), decoder, classifier, ceil_mode)
        vgg.initialise(self)


class SegNetBasic(UnpoolingModel):
    """The smaller network: four 7x7 convolutions down, without activation as many up; the image is normalised first.

    Args: those of :class:`SegNet`; `width` is that of every layer.
    """

    STAGES = 4

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, ceil_mode: bool = True, width: int = vgg.WIDTH
    ) -> None:
        conv = partial(ConvNormAct, kernel_size=7, padding=3, eps=EPS, bias=True)
        encoder = [conv(width if stage else in_channels, width) for stage in range(self.STAGES)]
        decoder = [conv(width, width, activation=None) for _ in range(self.STAGES)]
        super().__init__(encoder, decoder, DilatedConv2d(width, num_classes, 1), ceil_mode)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        vgg.initialise(self)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        return super().coarse_logits(self.norm(input), side_outputs)


_NAMES = (  # of a convolution and its norm, in the encoder and in the decoder; S and I are s - 1 and i - 1
    ("conv{s}_{i}", "conv{s}_{i}_bn", "conv{s}_{i}_D", "conv{s}_{i}_D_bn"),
    ("conv{s}{i}", "bn{s}{i}", "conv{s}{i}d", "bn{s}{i}d"),
    ("ConvEn{s}{i}", "BNEn{s}{i}", "ConvDe{s}{i}", "BNDe{s}{i}"),
    ("encoder_conv_{S}{I}.0", "encoder_conv_{S}{I}.1", "decoder_convtr_{S}{I}.0", "decoder_convtr_{S}{I}.1"),
)
_UNUSED = (r"BNDe11\..*", r"vgg16\..*")  # registered by two of the ports, used by neither


def _conv_rule(name: str, ours: str) -> tuple[str, str]:
    return rf"{name}\.(weight|bias)", rf"{ours}.\1"


def _rules() -> list[tuple[str, str]]:
    rules = []
    for s, i in vgg.positions():
        down, up = f"encoder.{s - 1}.{i - 1}", f"decoder.{5 - s}.{vgg.STAGES[s - 1][1] - i}"
        for names in _NAMES:
            conv, norm, conv_up, norm_up = (re.escape(name.format(s=s, i=i, S=s - 1, I=i - 1)) for name in names)
            rules += [_conv_rule(conv, f"{down}.conv"), *norm_rules(norm, f"{down}.norm")]
            if (s, i) == (1, 1):
                rules.append(_conv_rule(conv_up, "classifier"))
            else:
                rules += [_conv_rule(conv_up, f"{up}.conv"), *norm_rules(norm_up, f"{up}.norm")]
    return rules


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    straight = {
        key: as_convolution(value) if key.startswith("decoder_convtr_") and value.ndim == 4 else value
        for key, value in state.items()
    }
    return with_statistics(official.renamed("segnet", straight, _rules(), _UNUSED))


def _convert_basic(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [_conv_rule("conv_classifier", "classifier")]
    for s in range(1, SegNetBasic.STAGES + 1):
        for name, ours in ((f"conv{s}", f"encoder.{s - 1}"), (f"conv_decode{s}", f"decoder.{SegNetBasic.STAGES - s}")):
            rules += [_conv_rule(name, f"{ours}.conv"), *norm_rules(f"{name}_bn", f"{ours}.norm")]
    return with_statistics(official.renamed("segnet_basic", state, rules))


def _options_of(first: str, state: dict[str, Tensor]) -> dict[str, Any]:
    return {"num_classes": state["classifier.weight"].shape[0], **vgg.options_of(state[first])}


MODELS = {
    "segnet": Entry(SegNet, _convert, partial(_options_of, "encoder.0.0.conv.weight")),
    "segnet_basic": Entry(SegNetBasic, _convert_basic, partial(_options_of, "encoder.0.conv.weight")),
}
