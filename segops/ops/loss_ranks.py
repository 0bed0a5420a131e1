"""A loss over the ranks of a process group: one sum over ranks between the two passes over the logits.

Every rank gets the loss of the whole batch. Its gradient is multiplied by the number of ranks, so that the mean that
DistributedDataParallel takes of the ranks' gradients is the gradient of one rank with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: From (overlap sums, ce sums, ce_weight, dice_weight) to (loss, parts, scores): the operator `value` with its options.
Value = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor, Tensor]]


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, group: Any) -> Tensor:
        from torch.distributed import _functional_collectives as collectives

        ctx.ranks = dist.get_world_size(group)
        return collectives.wait_tensor(collectives.all_reduce(sums, "sum", group))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return grads[0] * ctx.ranks, None


def check_group(op: str, process_group: Any, reduction: str) -> None:
    if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"segops.{op}: process_group must be a torch.distributed.ProcessGroup, got {type(process_group).__name__}"
        )
    if dist.get_rank(process_group) < 0:
        raise ValueError(f"segops.{op}: process_group must contain this rank")
    if reduction == "none":
        raise ValueError(f'segops.{op}: process_group must be None with reduction="none": a map is not a sum')


def value(
    process_group: Any,
    sums: Tensor,
    ce_sums: Tensor,
    of_sums: Value,
    *,
    ce_weight: float,
    dice_weight: float,
    batch_dice: bool,
    include_background: bool,
    skip_absent: bool,
    ce_mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, (ce, dice), scores) of all ranks, from this rank's overlap sums [N, 3, C] and cross-entropy sums [2].

    With `batch_dice` the scores are those of all ranks, otherwise those of this rank's images.
    """
    if sums.ndim != 3:  # the cross-entropy alone
        return of_sums(sums, _SumOverRanks.apply(ce_sums, process_group), ce_weight, dice_weight)
    if batch_dice:
        flat = torch.cat([sums.sum(0).flatten(), ce_sums])
        total = _SumOverRanks.apply(flat, process_group)
        return of_sums(total[:-2].view(1, 3, sums.shape[2]), total[-2:], ce_weight, dice_weight)
    mean, _, scores = of_sums(sums, ce_sums, 0.0, 1.0)
    cells = sums.detach()[:, 2, 0 if include_background else 1 :]
    number = (cells > 0).sum() if skip_absent else torch.full_like(ce_sums[0], cells.shape[0] * cells.shape[1])
    number = number.to(sums.dtype)
    # A rank may have no image, or none with a target: the mean of nothing is not a number.
    share = torch.where(number > 0, mean * number, 0.0)
    total = _SumOverRanks.apply(torch.stack([share, number, ce_sums[0], ce_sums[1]]), process_group)
    dice = total[0] / (total[1].clamp(min=1) if skip_absent else total[1])
    ce = total[2] / total[3] if ce_mean else total[2]
    loss = torch.zeros_like(dice)
    # A term of weight zero is left out: its NaN reaches neither loss nor gradient.
    if ce_weight != 0:
        loss = loss + ce_weight * ce
    if dice_weight != 0:
        loss = loss + dice_weight * dice
    return loss, torch.stack([ce, dice]), scores
