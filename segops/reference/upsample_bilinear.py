"""upsample_bilinear2d and upsample_cat in plain PyTorch, by their definitions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def taps(size: int, out: int, align_corners: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(low, high, weight) along one axis: output i is (1 - weight[i]) * input[low[i]] + weight[i] * input[high[i]].

    The coordinates of torch.nn.functional.interpolate, in float64; `scale` is 0 where the sizes decide. As in torch on
    a CPU, an axis that keeps its size is read as it is, whatever the scale.
    """
    at = torch.arange(out, dtype=torch.float64)
    if align_corners:
        source = at * ((size - 1) / (out - 1) if out > 1 else 0.0)
    else:
        step = min(1 / scale, float(size)) if scale > 0 and size != out else size / out
        source = ((at + 0.5) * step - 0.5).clamp(min=0)
    low = source.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), (source - low).clamp(max=1)


def upsample_bilinear2d(
    input: Tensor, height: int, width: int, align_corners: bool, scale_h: float, scale_w: float
) -> Tensor:
    """[N, C, height, width]; 16-bit input is interpolated in float32 and rounded once."""
    x = input.float() if input.dtype.itemsize == 2 else input
    top, bottom, down = (t.to(x.device) for t in taps(x.shape[2], height, align_corners, scale_h))
    left, right, across = (t.to(x.device) for t in taps(x.shape[3], width, align_corners, scale_w))
    down, across = down.to(x.dtype)[:, None], across.to(x.dtype)
    x = (1 - across) * x.index_select(3, left) + across * x.index_select(3, right)
    x = (1 - down) * x.index_select(2, top) + down * x.index_select(2, bottom)
    return x.to(input.dtype).contiguous(memory_format=suggest_memory_format(input))


def upsample_cat(input: Tensor, skip: Tensor, align_corners: bool, skip_first: bool) -> Tensor:
    """`input` at the size of `skip`, and `skip`, one behind the other."""
    height, width = skip.shape[2:]
    up = upsample_bilinear2d(input, height, width, align_corners, 0.0, 0.0)
    return torch.cat([skip, up] if skip_first else [up, skip], 1).contiguous(memory_format=suggest_memory_format(input))
