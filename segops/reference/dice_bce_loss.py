"""dice_bce_loss in plain PyTorch, by its definition. The loss from its sums is that of dice_ce_loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Labels of floating point further outside of [0, 1] are bad data (kSoftLabelSlack of dice_bce_loss.h).
SOFT_LABEL_SLACK = 1 / 128


def ignored(target: Tensor, ignore_index: int | None) -> Tensor:
    if ignore_index is None:
        return torch.zeros_like(target, dtype=torch.bool)
    return (target if target.is_floating_point() else target.long()) == ignore_index


def bad_labels(target: Tensor, ignore_index: int | None) -> Tensor:
    """Where a label is neither one nor `ignore_index`."""
    if target.is_floating_point():
        good = (target >= -SOFT_LABEL_SLACK) & (target <= 1 + SOFT_LABEL_SLACK)
    else:
        good = target.long() <= 1
    return ~good & ~ignored(target, ignore_index)


def _per_channel(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(like.dtype).view(-1, *[1] * (like.ndim - 2))


def bce_map(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    focal_gamma: float,
) -> tuple[Tensor, Tensor]:
    """Weighted loss of every element and its weight, [N, C, *spatial] both; zero where not `valid`."""
    # Replaced before the sigmoid, too: the derivative at NaN is NaN, whatever the gradient.
    x = torch.where(valid, logits, 0)
    label = torch.where(valid, target, 0).to(x.dtype)
    positive = None if pos_weight is None else _per_channel(pos_weight, x)
    loss = F.binary_cross_entropy_with_logits(x, label, pos_weight=positive, reduction="none")
    if focal_gamma:
        wrong = x.sigmoid() * (1 - label) + (-x).sigmoid() * label  # 1 - p_t
        above = wrong > 0
        loss = loss * torch.where(above, torch.where(above, wrong, 1) ** focal_gamma, 0)
    share = torch.ones_like(loss)
    if pixel_weight is not None:
        loss, share = loss * pixel_weight.to(x.dtype), share * pixel_weight.to(x.dtype)
    return torch.where(valid, loss, 0), torch.where(valid, share, 0)


def overlap_sums(logits: Tensor, target: Tensor, valid: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """I, P, T of every image and channel, each [N, C]."""
    prob = torch.where(valid, torch.where(valid, logits, 0).sigmoid(), 0)
    label = torch.where(valid, target, 0).to(prob.dtype)
    power = 2 if squared else 1
    pixels = tuple(range(2, logits.ndim))
    return (prob * label).sum(pixels), (prob**power).sum(pixels), (label**power).sum(pixels)


def statistics(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int | None,
    focal_gamma: float,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """([N, 3, C] overlap sums, [2] sums of the cross-entropy, its map). Bad labels are ignored."""
    valid = ~(ignored(target, ignore_index) | bad_labels(target, ignore_index))
    loss, share = bce_map(logits, target, valid, pos_weight, pixel_weight, focal_gamma)
    sums = torch.stack(overlap_sums(logits, target, valid, squared), 1)
    return sums, torch.stack([loss.sum(), share.sum()]), loss


def as_users_write_it(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """The loss as training scripts have it: the benchmarks' baseline. `target` is of floating point."""
    pixels = tuple(range(2, logits.ndim))
    prob = logits.sigmoid()
    intersection = (prob * target).sum(pixels)
    dice_loss = 1 - ((2 * intersection + smooth) / (prob.sum(pixels) + target.sum(pixels) + smooth)).mean()
    return F.binary_cross_entropy_with_logits(logits, target) + dice_loss
