"""CSNet with plain torch.nn and the official keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full(w: int) -> dict[str, list[list[int]]]:
    def blocks(count: int, each: int) -> list[list[int]]:
        return [[each // 2, each // 2]] * (count - 1) + [[each]]

    mixed = [2 * w // 3, 4 * w // 3, 4 * w // 3]
    return {
        "stages": [[[w // 2] * 2], [[w // 2] * 2] * 3, blocks(4, 2 * w), blocks(6, 4 * w), blocks(4, 4 * w)],
        "mixed": mixed,
        "dilated": [[m // 5] * 4 + [m - 4 * (m // 5)] for m in mixed],
        "fused": sum(mixed),
    }  # type: ignore[dict-item]


X1 = {
    "stages": [
        [[8, 10]],
        [[9, 10], [10, 10], [10, 10]],
        [[19, 13], [19, 17], [20, 12], [34]],
        [[24, 21], [26, 27], [22, 18], [19, 18], [23, 18], [38]],
        [[18, 29], [25, 24], [26, 20], [50]],
    ],
    "mixed": [12, 24, 24],
    "dilated": [[1, 2, 2, 2, 4], [1, 4, 4, 4, 5], [2, 2, 4, 5, 4]],
    "fused": 60,
}
X2 = {
    "stages": [
        [[13, 10]],
        [[13, 12], [18, 11], [18, 12]],
        [[28, 21], [34, 22], [31, 29], [51]],
        [[23, 26], [27, 26], [25, 20], [17, 21], [19, 25], [38]],
        [[18, 31], [31, 27], [26, 44], [64]],
    ],
    "mixed": [17, 38, 32],
    "dilated": [[2, 1, 2, 2, 1], [0, 6, 6, 7, 5], [0, 1, 3, 7, 7]],
    "fused": 79,
}
TABLES = {"csnet_x1": full(20), "csnet_x2": full(40), "csnet_l_x1": X1, "csnet_l_x2": X2}


class X100(nn.Conv2d):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.data /= 100

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * 100.0, None)


class GOct(nn.Module):
    def __init__(self, inputs: list[int], outputs: list[int], k: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.k, self.stride = inputs, outputs, k, stride
        self.weight = nn.Parameter(torch.randn(sum(outputs), sum(inputs), k, k) / (sum(inputs) * k * k) ** 0.5)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        if self.stride == 2:
            xs = [F.avg_pool2d(x, 2) for x in xs]
        ys = []
        for j in range(len(self.outputs)):
            a = sum(self.outputs[:j])
            y: Tensor | float = 0.0
            for i, x in enumerate(xs):
                c = sum(self.inputs[:i])
                w = self.weight[a : a + self.outputs[j], c : c + self.inputs[i]]
                if i < j:
                    x = F.max_pool2d(x, 2 ** (j - i))
                x = F.conv2d(x, w, padding=self.k // 2)
                y = y + (F.interpolate(x, scale_factor=2 ** (i - j), mode="bilinear") if i > j else x)
            ys.append(y)
        return ys


class CBR(nn.Module):
    def __init__(self, inputs: list[int], outputs: list[int], k: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = GOct(inputs, outputs, k, stride)
        self.bns = nn.ModuleList(nn.BatchNorm2d(c) for c in outputs)
        self.prelus = nn.ModuleList(nn.PReLU(c) for c in outputs)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [p(b(y)) for p, b, y in zip(self.prelus, self.bns, self.conv(xs), strict=True)]


class Depthwise(nn.Module):
    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(X100(c, c, 3, padding=1, groups=c, bias=False) for c in channels)
        self.bns = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.prelus = nn.ModuleList(nn.PReLU(c) for c in channels)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [p(b(c(x))) for p, b, c, x in zip(self.prelus, self.bns, self.convs, xs, strict=True)]


class ILBlock(nn.Module):
    def __init__(self, inputs: list[int], outputs: list[int], k: int, stride: int) -> None:
        super().__init__()
        self.conv1x1 = CBR(inputs, outputs, k, stride)
        self.conv3x3_1 = Depthwise(outputs)
        self.conv3x3_2 = Depthwise(outputs)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return self.conv3x3_2(self.conv3x3_1(self.conv1x1(xs)))


class Dilated(nn.Module):
    def __init__(self, inputs: int, outputs: list[int]) -> None:
        super().__init__()
        self.msconv = nn.ModuleDict()
        for n, c in enumerate(outputs):
            if c:
                d = 2**n
                self.msconv[str(n)] = X100(inputs, c, 3, padding=d, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(sum(outputs))
        self.prelu = nn.PReLU(sum(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(torch.cat([conv(x) for conv in self.msconv.values()], 1)))


class CSNet(nn.Module):
    def __init__(self, name: str, num_classes: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        table = TABLES[name]
        inputs = [in_channels]
        for s, stage in enumerate(table["stages"]):
            blocks = []
            for b, outputs in enumerate(stage):
                strided = s >= 2 and b == 0
                blocks.append(ILBlock(inputs, outputs, 3 if strided or s == 0 else 1, 2 if strided else 1))
                inputs = outputs
            self.add_module(f"stage{s}", nn.Sequential(*blocks))
        self.oct_fuse = nn.Module()
        self.oct_fuse.fuse = CBR([stage[-1][0] for stage in table["stages"][2:]], table["mixed"])
        self.oct_fuse.ms = nn.Module()
        self.oct_fuse.ms.convs = nn.ModuleList(map(Dilated, table["mixed"], table["dilated"]))
        self.oct_fuse.fuse1x1 = CBR([sum(d) for d in table["dilated"]], [table["fused"]])
        self.cls_layer = nn.Conv2d(table["fused"], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        xs = self.stage1(self.stage0([x]))
        ends = []
        for stage in (self.stage2, self.stage3, self.stage4):
            xs = stage(xs)
            ends.append(xs[0])
        xs = [ms(y) for ms, y in zip(self.oct_fuse.ms.convs, self.oct_fuse.fuse(ends), strict=True)]
        return F.interpolate(self.cls_layer(self.oct_fuse.fuse1x1(xs)[0]), size, mode="bilinear")
