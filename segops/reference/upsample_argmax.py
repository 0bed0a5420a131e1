"""upsample_argmax in plain PyTorch, by its definition: the full-resolution logits exist here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Labels [N, height, width], and the softmax probability of each in float32 (float64 for float64)."""
    accumulated = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    full = F.interpolate(accumulated, (height, width), mode="bilinear", align_corners=align_corners)
    labels = full.argmax(1, keepdim=True)
    return labels[:, 0].to(dtype), full.softmax(1).gather(1, labels)[:, 0]
