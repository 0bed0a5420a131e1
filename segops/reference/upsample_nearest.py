"""upsample_nearest2d and bed_of_nails2d in plain PyTorch, by their definitions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def source(size: int, out: int, scale: float) -> Tensor:
    """The input that each of `out` outputs along one axis is; `scale` 0 where the sizes decide.

    torch computes these coordinates in float32, so that they are not always the floor of the exact ratio.
    """
    step = np.float32(1.0 / scale) if scale > 0 else np.float32(size) / np.float32(out)
    at = torch.arange(out)
    if out == size:
        return at
    if out == 2 * size:
        return at // 2
    return (at.float() * float(step)).long().clamp(max=size - 1)


def upsample_nearest2d(input: Tensor, height: int, width: int, scale_h: float, scale_w: float) -> Tensor:
    rows = source(input.shape[2], height, scale_h).to(input.device)
    columns = source(input.shape[3], width, scale_w).to(input.device)
    return input.index_select(2, rows).index_select(3, columns)


def bed_of_nails2d(input: Tensor, scale: int) -> Tensor:
    """[N, C, h * scale, w * scale]: the input at multiples of scale, zeros between."""
    n, c, h, w = input.shape
    output = input.new_zeros((n, c, h * scale, w * scale))
    output[:, :, ::scale, ::scale] = input
    return output
