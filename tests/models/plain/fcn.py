"""FCN-32s, FCN-16s, FCN-8s and FCN-8s at once with plain torch.nn and the official keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FCN(nn.Module):
    def __init__(self, num_classes: int, stride: int, at_once: bool = False, width: int = 64) -> None:
        super().__init__()
        self.stride, self.at_once, k, w = stride, at_once, num_classes, width
        self.conv1_1, self.conv1_2 = nn.Conv2d(3, w, 3, padding=100), nn.Conv2d(w, w, 3, padding=1)
        self.conv2_1, self.conv2_2 = (nn.Conv2d(i, 2 * w, 3, padding=1) for i in (w, 2 * w))
        self.conv3_1, self.conv3_2, self.conv3_3 = (nn.Conv2d(i, 4 * w, 3, padding=1) for i in (2 * w, 4 * w, 4 * w))
        self.conv4_1, self.conv4_2, self.conv4_3 = (nn.Conv2d(i, 8 * w, 3, padding=1) for i in (4 * w, 8 * w, 8 * w))
        self.conv5_1, self.conv5_2, self.conv5_3 = (nn.Conv2d(8 * w, 8 * w, 3, padding=1) for _ in range(3))
        self.fc6, self.fc7 = nn.Conv2d(8 * w, 64 * w, 7), nn.Conv2d(64 * w, 64 * w, 1)
        self.score_fr = nn.Conv2d(64 * w, k, 1)

        def up(factor: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(k, k, 2 * factor, factor, bias=False)

        if stride == 32:
            self.upscore = up(32)
            return
        self.score_pool4, self.upscore2 = nn.Conv2d(8 * w, k, 1), up(2)
        if stride == 16:
            self.upscore16 = up(16)
            return
        self.score_pool3, self.upscore_pool4, self.upscore8 = nn.Conv2d(4 * w, k, 1), up(2), up(8)

    def forward(self, image: Tensor) -> Tensor:
        x, pools = image, {}
        for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
            for i in range(1, depth + 1):
                x = F.relu(getattr(self, f"conv{stage}_{i}")(x))
            x = pools[stage] = F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = F.dropout2d(F.relu(self.fc6(x)), 0.5, self.training)
        x = F.dropout2d(F.relu(self.fc7(x)), 0.5, self.training)
        x = self.score_fr(x)
        height, width = image.shape[2:]
        if self.stride == 32:
            return self.upscore(x)[:, :, 19 : 19 + height, 19 : 19 + width]
        scales = (0.01, 0.0001) if self.at_once else (1.0, 1.0)
        x = self.upscore2(x)
        x = x + self.score_pool4(scales[0] * pools[4])[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
        if self.stride == 16:
            return self.upscore16(x)[:, :, 27 : 27 + height, 27 : 27 + width]
        x = self.upscore_pool4(x)
        x = x + self.score_pool3(scales[1] * pools[3])[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
        return self.upscore8(x)[:, :, 31 : 31 + height, 31 : 31 + width]
