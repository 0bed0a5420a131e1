"""dice_ce_loss in plain PyTorch, by its definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolated(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Coarse logits [N, C, h, w] at the size (H, W) of their target."""
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def overlap_sums(logits: Tensor, target: Tensor, ignore_index: int, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """I, P, T of every image and class, each [N, C]. Ignored pixels count in none of them."""
    classes = logits.shape[1]
    valid = target != ignore_index
    # Replaced before the softmax, too: the derivative of a softmax of NaN is NaN, whatever the gradient.
    prob = torch.where(valid[:, None], logits, 0).softmax(1)
    onehot = F.one_hot(torch.where(valid, target, 0), classes).movedim(-1, 1).to(prob.dtype)
    prob = torch.where(valid[:, None], prob, 0)
    onehot = torch.where(valid[:, None], onehot, 0)
    pixels = tuple(range(2, logits.ndim))
    return (prob * onehot).sum(pixels), (prob**2 if squared else prob).sum(pixels), onehot.sum(pixels)


def cross_entropy_map(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Weighted loss of every pixel and its weight, [N, *spatial] both; zero at ignored pixels."""
    classes = logits.shape[1]
    valid = target != ignore_index
    label = torch.where(valid, target, 0)
    log_prob = torch.where(valid[:, None], logits, 0).log_softmax(1)
    class_weight = logits.new_ones(classes) if weight is None else weight.to(logits.dtype)
    share = class_weight[label]
    nll = -log_prob.gather(1, label[:, None])[:, 0] * share
    loss = (1 - label_smoothing) * nll
    if label_smoothing:
        spread = -(log_prob * class_weight.view(-1, *[1] * (logits.ndim - 2))).sum(1)
        loss = loss + label_smoothing / classes * spread
    if pixel_weight is not None:
        pixel_weight = pixel_weight.to(logits.dtype)
        loss, share = loss * pixel_weight, share * pixel_weight
    return torch.where(valid, loss, 0), torch.where(valid, share, 0)


def dice(
    sums: tuple[Tensor, Tensor, Tensor],
    *,
    coefficients: tuple[float, float, float, float],
    smooth: float,
    batch_dice: bool,
    include_background: bool,
    skip_absent: bool,
    dice_class_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mean of 1 - score, and the scores [N or 1, C]; (i; j, p, t) of (i I + smooth) / (j I + p P + t T + smooth)."""
    intersection, probability, truth = (s.sum(0, keepdim=True) for s in sums) if batch_dice else sums
    num_i, den_i, den_p, den_t = coefficients
    numerator = num_i * intersection + smooth
    denominator = den_i * intersection + den_p * probability + den_t * truth + smooth
    empty = denominator == 0
    scores = torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator))
    loss = 1 - scores
    if dice_class_weight is not None:
        loss = loss * dice_class_weight.to(loss.dtype)
    counts = (truth > 0) if skip_absent else torch.ones_like(truth, dtype=torch.bool)
    if not include_background:
        loss, counts = loss[:, 1:], counts[:, 1:]
    total = torch.where(counts, loss, 0).sum()
    number = counts.sum()
    if skip_absent:
        number = number.clamp(min=1)
    return total / number, scores


def statistics(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """([N, 3, C] overlap sums, [2] sums of the cross-entropy, its map, confusion). Bad labels must be ignore_index."""
    ce_map, share = cross_entropy_map(logits, target, weight, pixel_weight, ignore_index, label_smoothing)
    sums = torch.stack(overlap_sums(logits, target, ignore_index, squared), 1)
    return sums, torch.stack([ce_map.sum(), share.sum()]), ce_map, confusion(logits, target, ignore_index)


def value(
    sums: Tensor, ce_sums: Tensor, ce_weight: float, dice_weight: float, *, ce_mean: bool, **overlap_options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, (ce, dice), scores) from [N, 3, C] overlap sums and the sums of pixel losses and of their weights."""
    ce = ce_sums[0] / ce_sums[1] if ce_mean else ce_sums[0]
    overlap, scores = dice((sums[:, 0], sums[:, 1], sums[:, 2]), **overlap_options)
    loss = ce.new_zeros(())
    if ce_weight:
        loss = loss + ce_weight * ce
    if dice_weight:
        loss = loss + dice_weight * overlap
    return loss, torch.stack([ce, overlap]), scores


def confusion(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Counts [C, C] of (target, argmax) over the pixels that are not ignored."""
    classes = logits.shape[1]
    valid = target != ignore_index
    cell = torch.where(valid, target, 0) * classes + logits.argmax(1)
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=logits.device)
    return counts.index_add_(0, cell.flatten(), valid.flatten().long()).view(classes, classes)


def as_users_write_it(logits: Tensor, target: Tensor, weight: Tensor | None = None, smooth: float = 1e-5) -> Tensor:
    """The loss as training scripts have it, with a one-hot target: the benchmarks' baseline. No ignored pixels."""
    pixels = tuple(range(2, logits.ndim))
    prob = logits.softmax(1)
    onehot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    intersection = (prob * onehot).sum(pixels)
    dice_loss = 1 - ((2 * intersection + smooth) / (prob.sum(pixels) + onehot.sum(pixels) + smooth)).mean()
    return F.cross_entropy(logits, target, weight) + dice_loss


def leanest_eager(logits: Tensor, target: Tensor, weight: Tensor | None = None, smooth: float = 1e-5) -> Tensor:
    """The same value with as little work as eager PyTorch allows: one log-softmax, gather and bincount, no one-hot."""
    n, c = logits.shape[:2]
    pixels = tuple(range(2, logits.ndim))
    log_prob = logits.log_softmax(1)
    prob = log_prob.exp()
    cell = (torch.arange(n, device=target.device).view(-1, *[1] * (target.ndim - 1)) * c + target).flatten()
    at_target = prob.gather(1, target[:, None]).flatten()
    intersection = logits.new_zeros(n * c).index_add(0, cell, at_target).view(n, c)
    truth = torch.bincount(cell, minlength=n * c).view(n, c)
    dice_loss = 1 - ((2 * intersection + smooth) / (prob.sum(pixels) + truth + smooth)).mean()
    return F.nll_loss(log_prob, target, weight) + dice_loss
