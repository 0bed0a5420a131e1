"""The network of the demo: a U-Net small enough to be trained in a minute or two on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SmallUNet(nn.Module):
    """Encoder and decoder with skip connections (Ronneberger, Fischer, Brox 2015), padded, with batch norm.

    Args:
        classes: number of output channels C.
        widths: channels at each level, finest first; every further level halves the resolution.

    Takes float [N, 3, H, W] and returns logits [N, C, H, W]; H and W are multiples of 2 ** (len(widths) - 1).
    """

    def __init__(self, classes: int, widths: Sequence[int] = (8, 16, 32, 64)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(_block(i, o) for i, o in zip((3, *widths), widths, strict=False))
        finer, coarser = widths[-2::-1], widths[:0:-1]
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(c, f, 2, stride=2) for c, f in zip(coarser, finer, strict=True)
        )
        self.decoder = nn.ModuleList(_block(2 * f, f) for f in finer)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), upsample(x)], dim=1))
        return self.head(x)
