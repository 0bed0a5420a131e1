"""dice_ce_loss in plain PyTorch, by its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def statistics(logits: Tensor, target: Tensor, ignore_index: int, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap sums I, P, T of every image and class, each [N, C]. Ignored pixels count in none of them."""
    classes = logits.shape[1]
    valid = target != ignore_index
    prob = logits.softmax(1)
    onehot = F.one_hot(torch.where(valid, target, 0), classes).movedim(-1, 1).to(prob.dtype)
    # where, not a product: NaN at an ignored pixel counts as little as any other value there.
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
    class_weight = torch.ones(classes, dtype=logits.dtype, device=logits.device) if weight is None else weight
    share = class_weight[label]
    nll = -log_prob.gather(1, label[:, None])[:, 0] * share
    loss = (1 - label_smoothing) * nll
    if label_smoothing:
        spread = -(log_prob * class_weight.view(-1, *[1] * (logits.ndim - 2))).sum(1)
        loss = loss + label_smoothing / classes * spread
    if pixel_weight is not None:
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
    """Mean of 1 - score, and the scores [N or 1, C]. `coefficients` as in `segops.ops.dice_ce_loss.overlap_coefficients`."""
    intersection, probability, truth = (s.sum(0, keepdim=True) for s in sums) if batch_dice else sums
    num_i, den_i, den_p, den_t = coefficients
    numerator = num_i * intersection + smooth
    denominator = den_i * intersection + den_p * probability + den_t * truth + smooth
    empty = denominator == 0
    scores = torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator))
    loss = 1 - scores
    if dice_class_weight is not None:
        loss = loss * dice_class_weight
    counts = (truth > 0) if skip_absent else torch.ones_like(truth, dtype=torch.bool)
    if not include_background:
        loss, counts = loss[:, 1:], counts[:, 1:]
    total = torch.where(counts, loss, 0).sum()
    number = counts.sum()
    if skip_absent:
        number = number.clamp(min=1)
    return total / number, scores


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    ce_weight: float,
    dice_weight: float,
    coefficients: tuple[float, float, float, float],
    smooth: float,
    batch_dice: bool,
    include_background: bool,
    skip_absent: bool,
    dice_class_weight: Tensor | None,
    squared: bool,
    reduction: str,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """(loss or map, ce, dice, scores, confusion), in float32 for 16-bit logits; bad labels must be ignore_index already."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    label = target.long()

    def as_x(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(x.dtype)

    loss_map, share = cross_entropy_map(x, label, as_x(weight), as_x(pixel_weight), ignore_index, label_smoothing)
    if reduction == "none":
        return loss_map, None, None, None, confusion(logits, label, ignore_index)
    ce = loss_map.sum() / share.sum() if reduction == "mean" else loss_map.sum()
    overlap, scores = dice(
        statistics(x, label, ignore_index, squared),
        coefficients=coefficients,
        smooth=smooth,
        batch_dice=batch_dice,
        include_background=include_background,
        skip_absent=skip_absent,
        dice_class_weight=as_x(dice_class_weight),
    )
    loss = x.new_zeros(())
    if ce_weight:
        loss = loss + ce_weight * ce
    if dice_weight:
        loss = loss + dice_weight * overlap
    return loss, ce, overlap, scores, confusion(logits, label, ignore_index)


def confusion(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Counts [C, C] of (target, argmax) over the pixels that are not ignored."""
    classes = logits.shape[1]
    valid = target != ignore_index
    cell = torch.where(valid, target, 0) * classes + logits.argmax(1)
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=logits.device)
    return counts.index_add_(0, cell.flatten(), valid.flatten().long()).view(classes, classes)
