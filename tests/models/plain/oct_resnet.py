"""Oct-ResNet-50, the classifier, in torch.nn with the keys of the PyTorch port."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    def __init__(self, i: int, o: int, k: int, stride: int, a_in: float, a_out: float) -> None:
        super().__init__()
        il, ol = int(a_in * i), int(a_out * o)
        self.stride, self.k = stride, k
        self.conv_h2h = nn.Conv2d(i - il, o - ol, k, padding=k // 2, bias=False)
        self.conv_h2l = nn.Conv2d(i - il, ol, k, padding=k // 2, bias=False) if ol else None
        self.conv_l2h = nn.Conv2d(il, o - ol, k, padding=k // 2, bias=False) if il else None
        self.conv_l2l = nn.Conv2d(il, ol, k, padding=k // 2, bias=False) if il and ol else None

    def forward(self, pair: Any) -> Any:
        h, low = pair
        if self.stride == 2:
            h = F.avg_pool2d(h, 2)
        out_h, out_l = self.conv_h2h(h), None
        if self.conv_l2h is not None:
            y = self.conv_l2h(low)
            out_h = out_h + (y if self.stride == 2 else F.interpolate(y, scale_factor=2, mode="nearest"))
        if self.conv_h2l is not None:
            out_l = self.conv_h2l(F.avg_pool2d(h, 2))
        if self.conv_l2l is not None:
            out_l = out_l + self.conv_l2l(F.avg_pool2d(low, 2) if self.stride == 2 else low)
        return out_h, out_l


class Unit(nn.Module):
    def __init__(self, *shape: Any, relu: bool = True) -> None:
        super().__init__()
        self.conv, self.relu = Conv(*shape), relu
        o, a = shape[1], shape[5]
        self.bn_h = nn.BatchNorm2d(o - int(a * o))
        self.bn_l = nn.BatchNorm2d(int(a * o)) if int(a * o) else None

    def forward(self, pair: Any) -> Any:
        h, low = self.conv(pair)
        out = [self.bn_h(h), None if self.bn_l is None else self.bn_l(low)]
        return [None if x is None else F.relu(x) if self.relu else x for x in out]


class Block(nn.Module):
    def __init__(self, i: int, w: int, stride: int, a_in: float, a: float, project: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = Unit(i, w, 1, 1, a_in, a), Unit(w, w, 3, stride, a, a)
        self.conv3 = Unit(w, 4 * w, 1, 1, a, a, relu=False)
        self.downsample = Unit(i, 4 * w, 1, stride, a_in, a, relu=False) if project else None

    def forward(self, pair: Any) -> Any:
        short = pair if self.downsample is None else self.downsample(pair)
        out = self.conv3(self.conv2(self.conv1(pair)))
        return [None if x is None else F.relu(x + y) for x, y in zip(out, short, strict=True)]


class OctResNet50(nn.Module):
    def __init__(self, classes: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        i, a_in = 64, 0.0
        for n, (w, count) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            a, parts = (0.0 if n == 4 else alpha), []
            for b in range(count):
                parts.append(Block(i, w, 2 if b == 0 and n > 1 else 1, a_in, a, b == 0))
                i, a_in = 4 * w, a
            setattr(self, f"layer{n}", nn.Sequential(*parts))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        pair: Any = (F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1), None)
        for n in (1, 2, 3, 4):
            pair = getattr(self, f"layer{n}")(pair)
        return self.fc(pair[0].mean((2, 3)))
