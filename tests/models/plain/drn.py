"""DRN-C and -D for segmentation in torch.nn, with the keys of the authors' code."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, d: int, bottleneck: bool, add: bool = True) -> None:
        super().__init__()
        out = 4 * o if bottleneck else o
        spec = [(i, o, 1, 1, 1), (o, o, 3, stride, d), (o, out, 1, 1, 1)]
        if not bottleneck:
            spec = [(i, o, 3, stride, d), (o, o, 3, 1, d)]
        self.n, self.add = len(spec), add
        for k, (a, b, size, s, dil) in enumerate(spec, 1):
            setattr(self, f"conv{k}", nn.Conv2d(a, b, size, s, dil if size == 3 else 0, dil, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(b))
        if stride != 1 or i != out:
            self.downsample = nn.Sequential(nn.Conv2d(i, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k in range(1, self.n + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            if k < self.n:
                y = y.relu()
        if self.add:
            y = y + (self.downsample(x) if hasattr(self, "downsample") else x)
        return y.relu()


def conv(i: int, o: int, k: int, stride: int = 1, d: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(i, o, k, stride, d * (k // 2), d, bias=False), nn.BatchNorm2d(o), nn.ReLU()]


class DRN(nn.Module):
    def __init__(self, variant: str, blocks: list[int], bottleneck: bool, classes: int) -> None:
        super().__init__()
        c = variant == "c"
        parts = conv(3, 16, 7) if c else [nn.Sequential(*conv(3, 16, 7))]
        ends = [(16, 1, 1), (32, 2, 1)]
        i = 16
        for o, stride, d in ends:
            parts.append(nn.Sequential(*([Block(i, o, stride, d, False)] if c else conv(i, o, 3, stride, d))))
            i = o
        for n, (o, stride, d) in zip(blocks, [(64, 2, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4)], strict=True):
            layer = []
            for b in range(n):
                layer.append(Block(i, o, stride if b == 0 else 1, d, bottleneck))
                i = 4 * o if bottleneck else o
            parts.append(nn.Sequential(*layer))
        for d in (2, 1):
            parts.append(nn.Sequential(*([Block(i, 512, 1, d, False, add=False)] if c else conv(i, 512, 3, 1, d))))
            i = 512
        self.base = nn.Sequential(*parts)
        self.seg = nn.Conv2d(512, classes, 1)
        self.up = nn.ConvTranspose2d(classes, classes, 16, 8, 4, groups=classes, bias=False)
        self.up.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.seg(self.base(x))
        return self.up(y).log_softmax(1), y
