"""The network that labels the centre of a patch, with plain torch.nn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchNet(nn.Module):
    """Logits [N, K] of the centres of patches [N, C, P, P], from the state of the network."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state
        self.depth = (len(state) - 2) // 2

    def forward(self, x: Tensor) -> Tensor:
        for place in range(self.depth):
            x = F.conv2d(x, self.state[f"blocks.{place}.conv.weight"], self.state[f"blocks.{place}.conv.bias"])
            x = F.max_pool2d(torch.tanh(x), 2)
        assert x.shape[2:] == (1, 1)
        return F.linear(x.flatten(1), self.state["classifier.weight"].flatten(1), self.state["classifier.bias"])
