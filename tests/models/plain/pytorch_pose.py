"""The stacked hourglass in torch.nn with the keys of bearpaw/pytorch-pose, of one block a level."""

from __future__ import annotations

from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        half = o // 2
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, half, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(half), nn.Conv2d(half, half, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(half), nn.Conv2d(half, o, 1)
        self.downsample = nn.Sequential(nn.Conv2d(i, o, 1)) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x).relu())
        y = self.conv2(self.bn2(y).relu())
        y = self.conv3(self.bn3(y).relu())
        return y + (x if self.downsample is None else self.downsample(x))


def residual(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(Bottleneck(i, o))


class Hourglass(nn.Module):
    """Four levels, the deepest first, each of what stays at its size, what goes down, what comes up, and a bottom."""

    def __init__(self, f: int) -> None:
        super().__init__()
        blocks = (4, 3, 3, 3)
        self.hg = nn.ModuleList(nn.ModuleList(residual(f, f) for _ in range(n)) for n in blocks)

    def level(self, d: int, x: Tensor) -> Tensor:
        stay, down, up = self.hg[d][:3]
        low = down(nn.functional.max_pool2d(x, 2))
        low = up(self.level(d - 1, low) if d else self.hg[0][3](low))
        return stay(x) + nn.functional.interpolate(low, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        return self.level(3, x)


class HourglassNet(nn.Module):
    def __init__(self, stacks: int, k: int, f: int = 256) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3 = residual(64, 128), residual(128, f), residual(f, f)
        self.hg = nn.ModuleList(Hourglass(f) for _ in range(stacks))
        self.res = nn.ModuleList(residual(f, f) for _ in range(stacks))
        self.fc = nn.ModuleList(nn.Sequential(nn.Conv2d(f, f, 1), nn.BatchNorm2d(f), nn.ReLU()) for _ in range(stacks))
        self.score = nn.ModuleList(nn.Conv2d(f, k, 1) for _ in range(stacks))
        self.fc_ = nn.ModuleList(nn.Conv2d(f, f, 1) for _ in range(stacks - 1))
        self.score_ = nn.ModuleList(nn.Conv2d(k, f, 1) for _ in range(stacks - 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer1(self.bn1(self.conv1(x)).relu())
        x = self.layer3(self.layer2(nn.functional.max_pool2d(x, 2)))
        maps = []
        for s in range(len(self.hg)):
            y = self.fc[s](self.res[s](self.hg[s](x)))
            maps.append(self.score[s](y))
            if s < len(self.fc_):
                x = x + self.fc_[s](y) + self.score_[s](maps[-1])
        return maps
