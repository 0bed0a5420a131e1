"""The Triton operators called as they are, without the dispatcher, and put together to the loss with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segops.ops.loss_arguments import overlap_coefficients
from segops.triton import dice_ce_loss as op


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, options: dict[str, Any]) -> Tensor:
        double = {"dtype": torch.float64}
        weight, pixel_weight = options.get("weight"), options.get("pixel_weight")
        accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight = None if weight is None else weight.to(**double)
        pixel_weight = None if pixel_weight is None else pixel_weight.to(accumulate)
        reduction, dice_weight = options.get("reduction", "mean"), options.get("dice_weight", 1.0)
        class_weight = options.get("dice_class_weight")
        shared = (options.get("ignore_index", -100), options.get("label_smoothing", 0.0), options.get("squared", False))
        with_map = reduction == "none"
        sums, ce, ce_map, _, _ = op.statistics(
            x, target, weight, pixel_weight, *shared, not with_map and dice_weight != 0, False, with_map, 0
        )
        if with_map:
            ctx.saved = (x, target, weight, pixel_weight, None, None, shared)
            return ce_map.to(x.dtype)
        loss, _, _, grad_overlap, grad_ce = op.value(
            sums,
            ce,
            None if class_weight is None else class_weight.to(**double),
            *overlap_coefficients("dice_ce_loss", options.get("overlap", "dice")),
            options.get("smooth", 1e-5),
            options.get("ce_weight", 1.0),
            dice_weight,
            options.get("batch_dice", False),
            options.get("include_background", True),
            options.get("absent_classes", "count") == "skip",
            reduction == "mean",
        )
        ctx.saved = (x, target, weight, pixel_weight, grad_overlap if dice_weight else None, grad_ce, shared)
        return loss.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, target, weight, pixel_weight, grad_overlap, grad_ce, shared = ctx.saved
        if grad_ce is None:
            own = upstream.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
            pixel_weight = own if pixel_weight is None else own * pixel_weight
            grad_ce = torch.ones(2, dtype=torch.float64)
            return op.backward(x, target, weight, pixel_weight, None, grad_ce, *shared), None, None
        grad_overlap = None if grad_overlap is None else grad_overlap * upstream.double()
        grad = op.backward(x, target, weight, pixel_weight, grad_overlap, grad_ce * upstream.double(), *shared)
        return grad, None, None


def loss(x: Tensor, target: Tensor, **options: Any) -> Tensor:
    """`segops.dice_ce_loss` without checks of its arguments."""
    return _Loss.apply(x, target, options)
