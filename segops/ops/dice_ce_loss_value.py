"""The loss from its sums: the operator dice_ce_loss_value, which knows nothing of where sums come from.

:func:`segops.dice_ce_loss` and :func:`segops.dice_bce_loss` end with it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from segops import backends
from segops._library import define_op
from segops.ops import loss_ranks as ranks
from segops.reference import dice_ce_loss as reference


def _fake_value(
    overlap: Tensor,
    ce: Tensor,
    dice_class_weight: Tensor | None,
    num_i: float,
    den_i: float,
    den_p: float,
    den_t: float,
    smooth: float,
    ce_weight: float,
    dice_weight: float,
    batch_dice: bool,
    include_background: bool,
    skip_absent: bool,
    ce_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scores = (1 if batch_dice else overlap.shape[0], overlap.shape[2]) if overlap.ndim == 3 else (0, 0)
    return (
        overlap.new_empty(()),
        overlap.new_empty((2,)),
        overlap.new_empty(scores),
        torch.empty_like(overlap, memory_format=torch.contiguous_format),
        overlap.new_empty((2,)),
    )


def _save_value(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[3], output[4])
    ctx.set_materialize_grads(False)


def _value_backward(ops: Any, ctx: Any, grad_loss: Any, *_: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * 14
    grad_overlap, grad_ce = ctx.saved_tensors
    return (grad_overlap * grad_loss, grad_ce * grad_loss, *[None] * 12)


define_op(
    "dice_ce_loss_value(Tensor overlap, Tensor ce, Tensor? dice_class_weight, float num_i, float den_i, float den_p, "
    "float den_t, float smooth, float ce_weight, float dice_weight, bool batch_dice, bool include_background, "
    "bool skip_absent, bool ce_mean) "
    "-> (Tensor loss, Tensor parts, Tensor scores, Tensor grad_overlap, Tensor grad_ce)",
    _fake_value,
    _save_value,
    _value_backward,
)


def loss_of_sums(
    backend: str,
    sums: Tensor,
    ce_sums: Tensor,
    process_group: Any,
    *,
    ce_weight: float,
    dice_weight: float,
    coefficients: tuple[float, float, float, float],
    smooth: float,
    batch_dice: bool,
    ce_mean: bool,
    dice_class_weight: Tensor | None = None,
    include_background: bool = True,
    skip_absent: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, (ce, dice), scores) from overlap sums [N, 3, C] and cross-entropy sums [2], over all ranks of a group."""
    ce_weight, dice_weight, smooth = float(ce_weight), float(dice_weight), float(smooth)
    options: dict[str, Any] = {
        "batch_dice": batch_dice,
        "include_background": include_background,
        "skip_absent": skip_absent,
        "ce_mean": ce_mean,
    }
    of_sums: Any  # a ranks.Value
    if backend == "reference":
        of_sums = partial(
            reference.value, coefficients=coefficients, smooth=smooth, dice_class_weight=dice_class_weight, **options
        )
    else:
        op = partial(backends.run, backend, "dice_ce_loss_value")

        def of_sums(
            sums: Tensor, ce_sums: Tensor, ce_weight: float, dice_weight: float
        ) -> tuple[Tensor, Tensor, Tensor]:
            class_weight = None
            if dice_class_weight is not None and sums.ndim == 3:  # else there is the cross-entropy alone
                class_weight = dice_class_weight.to(torch.float64).contiguous()
            numbers = (smooth, ce_weight, dice_weight)
            loss, parts, scores, _, _ = op(sums, ce_sums, class_weight, *coefficients, *numbers, *options.values())
            return loss, parts, scores

    if process_group is None:
        return of_sums(sums, ce_sums, ce_weight, dice_weight)
    return ranks.value(process_group, sums, ce_sums, of_sums, ce_weight=ce_weight, dice_weight=dice_weight, **options)
