"""A running mean of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Weights averaged over steps, as they are better to predict with than the last (Polyak and Juditsky 1992).

    Args:
        model: whose copy is averaged; the copy is in eval mode and needs no gradient.
        decay: d of ``mean = d * mean + (1 - d) * weight``; the first steps have a smaller one, (1 + t) / (10 + t) at
            step t, so that the initial weights are soon forgotten.

    Attributes:
        model: the copy. Its buffers are those of the last update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after `step` into the mean; steps are counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for held, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            held.copy_(buffer)
