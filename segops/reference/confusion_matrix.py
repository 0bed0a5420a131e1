"""confusion_matrix in plain PyTorch, by its definition."""

from __future__ import annotations

import torch
from torch import Tensor


def classes_of(prediction: Tensor) -> Tensor:
    """The class of each pixel, int64: that of the largest logit, or the label it is."""
    return prediction.argmax(1) if prediction.is_floating_point() else prediction.long()


def confusion_matrix(classes: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Counts [C, C] of (target, class), int64 both. No label may be bad; ignored pixels may have any class."""
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    cell = torch.where(valid, target * num_classes + classes, 0)
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=target.device)
    return counts.index_add_(0, cell.flatten(), valid.flatten().long()).view(num_classes, num_classes)
