"""U-Net with plain torch.nn and the official keys: the padded network in use, and the paper's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Double(nn.Module):
    def __init__(self, i: int, o: int, mid: int) -> None:
        super().__init__()
        layers = []
        for a, b in ((i, mid), (mid, o)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Double(i, o, o))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, i: int, o: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(i, i // 2, 2, stride=2)
        self.conv = Double(i, o, i // 2 if bilinear else o)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
        return self.conv(torch.cat((skip, x), 1))


class OutConv(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    def __init__(self, num_classes: int, in_channels: int = 3, bilinear: bool = False, width: int = 64) -> None:
        super().__init__()
        w, f = width, 2 if bilinear else 1
        self.inc = Double(in_channels, w, w)
        self.down1, self.down2, self.down3 = Down(w, 2 * w), Down(2 * w, 4 * w), Down(4 * w, 8 * w)
        self.down4 = Down(8 * w, 16 * w // f)
        self.up1, self.up2 = Up(16 * w, 8 * w // f, bilinear), Up(8 * w, 4 * w // f, bilinear)
        self.up3, self.up4 = Up(4 * w, 2 * w // f, bilinear), Up(2 * w, w, bilinear)
        self.outc = OutConv(w, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x5 = self.down4(x4)
        return self.outc(self.up4(self.up3(self.up2(self.up1(x5, x4), x3), x2), x1))


class Block(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(i, o, 3), nn.ReLU(), nn.Conv2d(o, o, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class UpValid(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(i, i // 2, 2, stride=2)
        self.conv_block = Block(i, i // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        (h, w), (y, z) = x.shape[2:], skip.shape[2:]
        y, z = (y - h) // 2, (z - w) // 2
        return self.conv_block(torch.cat((x, skip[:, :, y : y + h, z : z + w]), 1))


class UNetValid(nn.Module):
    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**n for n in range(5)]
        self.down_path = nn.ModuleList(Block(i, o) for i, o in zip([in_channels, *widths[:-1]], widths, strict=True))
        self.up_path = nn.ModuleList(UpValid(i) for i in (widths[4], widths[3], widths[2], widths[1]))
        self.last = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for n, block in enumerate(self.down_path):
            x = block(x if n == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up in self.up_path:
            x = up(x, skips.pop())
        return self.last(x)
