"""Dilation8 (CamVid and VOC), Dilation7 and Dilation10 with plain torch.nn and the keys of Caffe."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (2, 2, 3, 3, 3)
CONTEXTS = {
    "dilation8_camvid": (1, 1, 2, 4, 8, 16),
    "dilation7_kitti": (1, 1, 2, 4, 8),
    "dilation10_cityscapes": (1, 1, 2, 4, 8, 16, 32, 64),
    "dilation8_voc": (1, 1, 2, 4, 8, 16),
}


class DilatedNet(nn.Module):
    """Takes an image that is already padded by 186 pixels a side."""

    def __init__(self, name: str, num_classes: int, width: int = 64) -> None:
        super().__init__()
        k, large = num_classes, name == "dilation8_voc"
        inputs = 3
        for s, outputs in enumerate((width, 2 * width, 4 * width, 8 * width, 8 * width), 1):
            for i in range(1, DEPTHS[s - 1] + 1):
                self.add_module(f"conv{s}_{i}", nn.Conv2d(inputs, outputs, 3, dilation=2 if s == 5 else 1))
                inputs = outputs
        self.fc6 = nn.Conv2d(inputs, 64 * width, 7, dilation=4)
        self.fc7 = nn.Conv2d(64 * width, 64 * width, 1)
        self.last, prefix = ("fc-final", "ct_") if large else ("final", "ctx_")
        self.add_module(self.last, nn.Conv2d(64 * width, k, 1))
        dilations = CONTEXTS[name]
        stems = ["conv1_1", "conv1_2"] + [f"conv{i}_1" for i in range(2, len(dilations))]
        channels = [k, 2 * k, 2 * k, 4 * k, 8 * k, 16 * k, 32 * k, 32 * k] if large else [k] * (len(dilations) + 2)
        self.context = [prefix + stem for stem in (*stems, "fc1", "final")]
        for place, d in enumerate((*dilations, 1)):
            padding = (33 if place == 0 else 0) if large else d
            conv = nn.Conv2d(channels[place], channels[place + 1], 3, padding=padding, dilation=d)
            self.add_module(self.context[place], conv)
        self.add_module(self.context[-1], nn.Conv2d(channels[-1], k, 1))
        if name == "dilation10_cityscapes":
            self.ctx_upsample = nn.ConvTranspose2d(k, k, 16, 8, padding=4, groups=k, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for s, depth in enumerate(DEPTHS, 1):
            for i in range(1, depth + 1):
                x = F.relu(self.get_submodule(f"conv{s}_{i}")(x))
            if s <= 3:
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = F.dropout(F.relu(self.fc6(x)), 0.5, self.training)
        x = F.dropout(F.relu(self.fc7(x)), 0.5, self.training)
        x = self.get_submodule(self.last)(x)
        for name in self.context[:-1]:
            x = F.relu(self.get_submodule(name)(x))
        x = self.get_submodule(self.context[-1])(x)
        return self.ctx_upsample(x) if hasattr(self, "ctx_upsample") else x
