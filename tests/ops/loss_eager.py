"""What the eager formulas of both losses share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segops.reference import dice_ce_loss as reference


def fill_weights(options: dict[str, Any], shapes: dict[str, tuple[int, ...]], logits: Tensor) -> dict[str, Any]:
    """`options` with the names of shapes turned into weights for these logits (exact in every 16-bit dtype)."""
    generator = torch.Generator().manual_seed(7)

    def weights(kind: str) -> Tensor:
        steps = torch.randint(1, 16, shapes[kind], generator=generator)
        return (steps / 8).to(torch.float64 if logits.dtype == torch.float64 else torch.float32).to(logits.device)

    return {name: weights(v) if isinstance(v, str) and v in shapes else v for name, v in options.items()}


def gradients_of_map(shape: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    """That of a sum reaches the map as one expanded number, that of a transposed map with other strides."""
    gradient = torch.randint(-8, 9, shape, device=device) / 4.0
    return gradient, gradient[(slice(1),) * gradient.ndim].expand(shape), gradient.mT.contiguous().mT


def combined(
    logits: Tensor,
    entropy_map: Tensor,
    share: Tensor,
    sums: Tensor,
    *,
    entropy_weight: float,
    dice_weight: float,
    reduction: str,
    **overlap: Any,
) -> Tensor:
    """The loss in the dtype of the logits, without a term of weight zero; `overlap`: options of `reference.dice`."""
    loss = logits.new_zeros(())
    if entropy_weight:
        loss = loss + entropy_weight * (entropy_map.sum() / share.sum() if reduction == "mean" else entropy_map.sum())
    if dice_weight:
        loss = loss + dice_weight * reference.dice(sums, **overlap)[0]
    return loss
