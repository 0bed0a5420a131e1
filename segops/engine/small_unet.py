"""The network of the demo: a U-Net small enough to be trained in a minute or two on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segops.nn import UpsampleCat


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SmallUNet(nn.Module):
    """Encoder and decoder with skip connections (Ronneberger, Fischer, Brox 2015), padded, with batch norm.

    Nothing of it has the resolution of the image: the first convolution halves it, and the logits stay that coarse,
    since segops' loss and argmax take them so.

    Args:
        classes: number of output channels C.
        widths: channels at each level, finest (output stride 2) first; every further level halves the resolution.

    Takes float [N, 3, H, W] and returns logits [N, C, H / 2, W / 2]; H and W are multiples of 2 ** len(widths).
    """

    def __init__(self, classes: int, widths: Sequence[int] = (32, 48, 64, 96)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            _block(i, o, stride=1 if level else 2)
            for level, (i, o) in enumerate(zip((3, *widths), widths, strict=False))
        )
        finer, coarser = widths[-2::-1], widths[:0:-1]
        self.upsample_cat = UpsampleCat()
        self.decoder = nn.ModuleList(_block(f + c, f) for f, c in zip(finer, coarser, strict=True))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(self.upsample_cat(x, skips.pop()))
        return self.head(x)
