"""BASNet with plain torch.nn and the official keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, d: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=d, dilation=d)


def up(x: Tensor, times: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = None
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class RefUnet(nn.Module):
    def __init__(self, k: int, w: int) -> None:
        super().__init__()
        self.conv0, self.conv_d0 = conv(k, w), conv(w, k)
        for n in range(1, 6):
            self.add_module(f"conv{n}", conv(w, w))
            self.add_module(f"bn{n}", nn.BatchNorm2d(w))
            if n < 5:
                self.add_module(f"conv_d{n}", conv(2 * w, w))
                self.add_module(f"bn_d{n}", nn.BatchNorm2d(w))

    def layer(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x)))

    def forward(self, x: Tensor) -> Tensor:
        y, kept = self.conv0(x), []
        for n in "1234":
            kept.append(self.layer(n, y))
            y = pool(kept[-1])
        y = self.layer("5", y)
        for n in "4321":
            y = self.layer(f"_d{n}", torch.cat([up(y), kept.pop()], 1))
        return x + self.conv_d0(y)


class BASNet(nn.Module):
    def __init__(self, k: int = 1, w: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        self.inconv, self.inbn = conv(in_channels, w), nn.BatchNorm2d(w)
        i = w
        for s, (o, count) in enumerate(((w, 3), (2 * w, 4), (4 * w, 6), (8 * w, 3)), 1):
            blocks = [Block(i if b == 0 else o, o, 2 if b == 0 and s > 1 else 1) for b in range(count)]
            self.add_module(f"encoder{s}", nn.Sequential(*blocks))
            i = o
        for name in ("5_1", "5_2", "5_3", "6_1", "6_2", "6_3"):
            self.add_module(f"resb{name}", Block(8 * w, 8 * w))
        rows = {
            "bg": (8, 8, 8, 8), "6d": (16, 8, 8, 8), "5d": (16, 8, 8, 8), "4d": (16, 8, 8, 4),
            "3d": (8, 4, 4, 2), "2d": (4, 2, 2, 1), "1d": (2, 1, 1, 1),
        }  # fmt: skip
        dilations = {"bg": (2, 2, 2), "6d": (1, 2, 2)}
        for name, row in rows.items():
            for n, part in enumerate(("1", "m", "2")):
                d = dilations.get(name, (1, 1, 1))[n]
                self.add_module(f"conv{name}_{part}", conv(row[n] * w, row[n + 1] * w, d))
                self.add_module(f"bn{name}_{part}", nn.BatchNorm2d(row[n + 1] * w))
            self.add_module(f"outconv{name[0]}", conv(row[3] * w, k))
        self.refunet = RefUnet(k, w)

    def three(self, name: str, x: Tensor) -> Tensor:
        for part in ("1", "m", "2"):
            x = F.relu(self.get_submodule(f"bn{name}_{part}")(self.get_submodule(f"conv{name}_{part}")(x)))
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.inbn(self.inconv(x)))
        encoded = []
        for stage in (self.encoder1, self.encoder2, self.encoder3, self.encoder4):
            x = stage(x)
            encoded.append(x)
        encoded.append(self.resb5_3(self.resb5_2(self.resb5_1(pool(x)))))
        encoded.append(self.resb6_3(self.resb6_2(self.resb6_1(pool(encoded[-1])))))
        x = self.three("bg", encoded[-1])
        sides = [up(self.outconvb(x), 32)]
        for n in range(6, 0, -1):
            x = self.three(f"{n}d", torch.cat([x if n == 6 else up(x), encoded.pop()], 1))
            side = self.get_submodule(f"outconv{n}")(x)
            sides.insert(0, side if n == 1 else up(side, 2 ** (n - 1)))
        return tuple(torch.sigmoid(d) for d in (self.refunet(sides[0]), *sides))
