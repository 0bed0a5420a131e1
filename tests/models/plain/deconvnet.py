"""DeconvNet with plain torch.nn and the keys of the Caffe definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (2, 2, 3, 3, 3)


class DeconvNet(nn.Module):
    def __init__(self, num_classes: int, norm: type[nn.Module] = nn.BatchNorm2d, width: int = 64) -> None:
        super().__init__()
        c = [width, 2 * width, 4 * width, 8 * width, 8 * width]

        def layer(name: str, norm_name: str, module: nn.Module, channels: int) -> None:
            self.add_module(name, module)
            self.add_module(norm_name, norm(channels))

        inputs = 3
        for s, depth in enumerate(DEPTHS, 1):
            for i in range(1, depth + 1):
                layer(f"conv{s}_{i}", f"bn{s}_{i}", nn.Conv2d(inputs, c[s - 1], 3, padding=1), c[s - 1])
                inputs = c[s - 1]
        layer("fc6", "bnfc6", nn.Conv2d(c[4], 64 * width, 7), 64 * width)
        layer("fc7", "bnfc7", nn.Conv2d(64 * width, 64 * width, 1), 64 * width)
        layer("fc6-deconv", "fc6-deconv-bn", nn.ConvTranspose2d(64 * width, c[4], 7), c[4])
        for s in range(5, 0, -1):
            for i in range(1, DEPTHS[s - 1] + 1):
                outputs = c[max(s - 2, 0)] if i == DEPTHS[s - 1] else c[s - 1]
                deconv = nn.ConvTranspose2d(c[s - 1], outputs, 3, padding=1)
                layer(f"deconv{s}_{i}", f"debn{s}_{i}", deconv, outputs)
        self.add_module("seg-score-voc", nn.Conv2d(width, num_classes, 1))

    def _layer(self, x: Tensor, name: str, norm: str) -> Tensor:
        return F.relu(self.get_submodule(norm)(self.get_submodule(name)(x)))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for s, depth in enumerate(DEPTHS, 1):
            for i in range(1, depth + 1):
                x = self._layer(x, f"conv{s}_{i}", f"bn{s}_{i}")
            x, indices = F.max_pool2d(x, 2, 2, return_indices=True)
            kept.append(indices)
        x = self._layer(x, "fc6", "bnfc6")
        x = self._layer(x, "fc7", "bnfc7")
        x = self._layer(x, "fc6-deconv", "fc6-deconv-bn")
        for s in range(5, 0, -1):
            x = F.max_unpool2d(x, kept.pop(), 2, 2)
            for i in range(1, DEPTHS[s - 1] + 1):
                x = self._layer(x, f"deconv{s}_{i}", f"debn{s}_{i}")
        return self.get_submodule("seg-score-voc")(x)
