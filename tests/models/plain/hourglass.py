"""The stacked hourglass in torch.nn with the Princeton code's keys, its unused skip layers included."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    def __init__(self, i: int, o: int, k: int, stride: int = 1, bn: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, stride, k // 2)
        self.bn = nn.BatchNorm2d(o) if bn else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.bn(x).relu()


class Residual(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(i), nn.BatchNorm2d(o // 2), nn.BatchNorm2d(o // 2)
        self.conv1, self.conv2, self.conv3 = Conv(i, o // 2, 1), Conv(o // 2, o // 2, 3), Conv(o // 2, o, 1)
        self.skip_layer = Conv(i, o, 1)
        self.need_skip = i != o

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.bn3(self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())).relu())
        return y + (self.skip_layer(x) if self.need_skip else x)


class Hourglass(nn.Module):
    def __init__(self, n: int, f: int) -> None:
        super().__init__()
        self.up1, self.low1, self.low3 = Residual(f, f), Residual(f, f), Residual(f, f)
        self.low2 = Hourglass(n - 1, f) if n > 1 else Residual(f, f)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(nn.functional.max_pool2d(x, 2))))
        return self.up1(x) + nn.functional.interpolate(low, scale_factor=2)


class Merge(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = Conv(i, o, 1)


class PoseNet(nn.Module):
    def __init__(self, stacks: int, k: int, f: int = 256) -> None:
        super().__init__()
        r = Residual
        self.pre = nn.Sequential(Conv(3, 64, 7, 2, True), r(64, 128), nn.MaxPool2d(2), r(128, 128), r(128, f))
        self.hgs = nn.ModuleList(nn.Sequential(Hourglass(4, f)) for _ in range(stacks))
        self.features = nn.ModuleList(nn.Sequential(r(f, f), Conv(f, f, 1, bn=True)) for _ in range(stacks))
        self.outs = nn.ModuleList(Conv(f, k, 1) for _ in range(stacks))
        self.merge_features = nn.ModuleList(Merge(f, f) for _ in range(stacks - 1))
        self.merge_preds = nn.ModuleList(Merge(k, f) for _ in range(stacks - 1))

    def forward(self, x: Tensor) -> Tensor:
        x, maps = self.pre(x), []
        for s, (hg, feature, out) in enumerate(zip(self.hgs, self.features, self.outs, strict=True)):
            y = feature(hg(x))
            maps.append(out(y))
            if s < len(self.merge_preds):
                x = x + self.merge_preds[s].conv(maps[-1]) + self.merge_features[s].conv(y)
        return torch.stack(maps, 1)
