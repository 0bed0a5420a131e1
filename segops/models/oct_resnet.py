"""ResNet-50 whose convolutions are octave convolutions, applied to every position.

Chen et al., "Drop an Octave: Reducing Spatial Redundancy in Convolutional Neural Networks with Octave Convolution"
(ICCV 2019). The published network classifies images; here its classifier is a 1x1 convolution before the mean over
positions rather than a matrix product after it, so that logits have places (output stride 32) and their mean is the
published output. Frequencies part in the first block and meet again in the last stage.

Keys, those of the PyTorch port: conv1, bn1, layerN.B.{conv1,conv2,conv3,downsample}.conv.conv_{h2h,h2l,l2h,l2l} and
.{bn_h,bn_l}, fc (as a matrix or as a 1x1 convolution). Weights begin as in torchvision's ResNet: convolutions normal of
variance 2 / (k k C_out).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import ConvNormAct, DilatedConv2d, MaxPool2d, OctConv2d

STRIDE = 32
WIDTHS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4

Pair = tuple[Tensor | None, Tensor | None]


class OctResNet(SegmentationModel):
    """ResNet-50 with octave convolutions; as many parameters as ResNet-50 itself, whatever alpha is.

    Args:
        num_classes, in_channels: of logits and images.
        alpha: share of low frequencies between the first block and the last stage; 0 is ResNet-50.
        blocks: of each stage.

    Shape:
        [N, in_channels, H, W] to logits [N, num_classes, H, W]; H and W multiples of 32.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, alpha: float = 0.5, blocks: tuple[int, ...] = BLOCKS
    ) -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise ValueError(f"segops.models.oct_resnet50: alpha must be in [0, 1), got {alpha!r}")
        self.conv1 = ConvNormAct(in_channels, WIDTHS[0], 7, 2, 3)
        self.pool = MaxPool2d(3, 2, 1)
        channels, share = WIDTHS[0], 0.0
        stages = []
        for number, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True)):
            out = 0.0 if number == len(WIDTHS) - 1 else alpha
            stage = []
            for block in range(count):
                stage.append(OctBottleneck(channels, width, 2 if block == 0 and number else 1, share, out))
                channels, share = EXPANSION * width, out
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = DilatedConv2d(channels, num_classes, 1)
        for module in self.stages.modules():
            if isinstance(module, DilatedConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv1.conv.weight, mode="fan_out", nonlinearity="relu")

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        height, width = input.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"segops.models.oct_resnet50: sides must be multiples of {STRIDE}, got {height} x {width}")
        high, _ = self.stages((self.pool(self.conv1(input)), None))
        return [self.head(high)]


class OctBottleneck(nn.Module):
    """The bottleneck block on pairs of frequencies, of shares `alpha_in` and `alpha_out` of the channels."""

    def __init__(self, in_channels: int, width: int, stride: int, alpha_in: float, alpha_out: float) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = OctConvNorm(in_channels, width, 1, 1, alpha_in, alpha_out)
        self.conv2 = OctConvNorm(width, width, 3, stride, alpha_out, alpha_out)
        self.conv3 = OctConvNorm(width, out_channels, 1, 1, alpha_out, alpha_out, activated=False)
        same = stride == 1 and in_channels == out_channels and alpha_in == alpha_out
        self.downsample = (
            None if same else OctConvNorm(in_channels, out_channels, 1, stride, alpha_in, alpha_out, activated=False)
        )

    def forward(self, input: Pair) -> Pair:
        shortcut = input if self.downsample is None else self.downsample(input)
        high, low = self.conv3(self.conv2(self.conv1(input)))
        return _sum(high, shortcut[0]), _sum(low, shortcut[1])


def _sum(x: Tensor | None, shortcut: Tensor | None) -> Tensor | None:
    return None if x is None or shortcut is None else (x + shortcut).relu()


class OctConvNorm(nn.Module):
    """An octave convolution, a batch norm for each frequency, and a ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        alpha_in: float,
        alpha_out: float,
        *,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.conv = OctConv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, alpha_in=alpha_in, alpha_out=alpha_out
        )
        self.norm_high = nn.BatchNorm2d(self.conv.high_out)
        self.norm_low = nn.BatchNorm2d(self.conv.low_out) if self.conv.low_out else None
        self.activated = activated

    def forward(self, input: Pair) -> Pair:
        output = self.conv(input)
        high, low = (output, None) if isinstance(output, Tensor) else output
        high = self.norm_high(high)
        low = None if self.norm_low is None else self.norm_low(low)
        if self.activated:
            high, low = high.relu(), None if low is None else low.relu()
        return high, low


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = (
        (r"conv1\.weight", "conv1.conv.weight"),
        (r"bn1\.(\w+)", r"conv1.norm.\1"),
        *((rf"layer{i + 1}\.(.+)\.bn_h\.(\w+)", rf"stages.{i}.\1.norm_high.\2") for i in range(len(WIDTHS))),
        *((rf"layer{i + 1}\.(.+)\.bn_l\.(\w+)", rf"stages.{i}.\1.norm_low.\2") for i in range(len(WIDTHS))),
        *((rf"layer{i + 1}\.(.+\.conv\.conv_\w+\.weight)", rf"stages.{i}.\1") for i in range(len(WIDTHS))),
        (r"fc\.(weight|bias)", r"head.\1"),
    )
    ours = official.renamed("oct_resnet50", state, rules)
    weight = ours.get("head.weight")
    if weight is not None and weight.ndim == 2:
        ours["head.weight"] = weight[:, :, None, None]
    return ours


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    high = state["stages.0.0.conv1.norm_high.weight"].shape[0]
    return {
        "num_classes": state["head.weight"].shape[0],
        "in_channels": state["conv1.conv.weight"].shape[1],
        "alpha": 1 - high / WIDTHS[0],
    }


MODELS = {"oct_resnet50": Entry(OctResNet, _convert, _options_of)}
