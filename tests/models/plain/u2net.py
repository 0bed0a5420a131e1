"""U2-Net and U2-Net-P with plain torch.nn and the official keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FULL = {
    "1": (7, 3, 32, 64), "2": (6, 64, 32, 128), "3": (5, 128, 64, 256), "4": (4, 256, 128, 512),
    "5": (0, 512, 256, 512), "6": (0, 512, 256, 512), "5d": (0, 1024, 256, 512), "4d": (4, 1024, 128, 256),
    "3d": (5, 512, 64, 128), "2d": (6, 256, 32, 64), "1d": (7, 128, 16, 64),
}  # fmt: skip
SMALL = {
    "1": (7, 3, 16, 64), "2": (6, 64, 16, 64), "3": (5, 64, 16, 64), "4": (4, 64, 16, 64), "5": (0, 64, 16, 64),
    "6": (0, 64, 16, 64), "5d": (0, 128, 16, 64), "4d": (4, 128, 16, 64), "3d": (5, 128, 16, 64),
    "2d": (6, 128, 16, 64), "1d": (7, 128, 16, 64),
}  # fmt: skip


def resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


class REBNCONV(nn.Module):
    def __init__(self, inputs: int, outputs: int, d: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=d, dilation=d)
        self.bn_s1 = nn.BatchNorm2d(outputs)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu_s1(self.bn_s1(self.conv_s1(x)))


class RSU(nn.Module):
    """`levels` 0 is RSU-4F."""

    def __init__(self, levels: int, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.pools = levels > 0
        self.levels = levels or 4
        dilations = [1] * (self.levels - 1) + [2] if self.pools else [1, 2, 4, 8]
        self.rebnconvin = REBNCONV(inputs, outputs)
        for n, d in enumerate(dilations, 1):
            self.add_module(f"rebnconv{n}", REBNCONV(outputs if n == 1 else middle, middle, d))
            if n < self.levels:
                self.add_module(f"rebnconv{n}d", REBNCONV(2 * middle, outputs if n == 1 else middle, d))

    def forward(self, x: Tensor) -> Tensor:
        start = self.rebnconvin(x)
        encoded = [self.rebnconv1(start)]
        for n in range(2, self.levels + 1):
            x = halve(encoded[-1]) if self.pools and n < self.levels else encoded[-1]
            encoded.append(self.get_submodule(f"rebnconv{n}")(x))
        x = encoded.pop()
        for n in range(self.levels - 1, 0, -1):
            skip = encoded.pop()
            x = self.get_submodule(f"rebnconv{n}d")(torch.cat([resize(x, skip), skip], 1))
        return x + start


class U2Net(nn.Module):
    def __init__(self, table: dict[str, tuple[int, int, int, int]] = FULL, num_classes: int = 1) -> None:
        super().__init__()
        for name, row in table.items():
            self.add_module(f"stage{name}", RSU(*row))
        for n, name in enumerate(("1d", "2d", "3d", "4d", "5d", "6"), 1):
            self.add_module(f"side{n}", nn.Conv2d(table[name][3], num_classes, 3, padding=1))
        self.outconv = nn.Conv2d(6 * num_classes, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        encoded = [self.stage1(x)]
        for n in range(2, 7):
            encoded.append(self.get_submodule(f"stage{n}")(halve(encoded[-1])))
        x = encoded[5]
        sides = [self.side6(x)]
        for n in range(5, 0, -1):
            skip = encoded[n - 1]
            x = self.get_submodule(f"stage{n}d")(torch.cat([resize(x, skip), skip], 1))
            sides.insert(0, self.get_submodule(f"side{n}")(x))
        sides = [resize(side, sides[0]) for side in sides]
        fused = self.outconv(torch.cat(sides, 1))
        return tuple(torch.sigmoid(d) for d in (fused, *sides))
