"""The derivative of a loss' statistics, which is the same for every loss that goes statistics, value, backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def derivative(op: str, with_map: int, options: int) -> tuple[Callable[..., None], Callable[..., tuple[Any, ...]]]:
    """`setup_context` and `backward` of ``{op}_statistics`` and ``{op}_coarse_statistics``.

    Their inputs are four tensors (logits, target, weights of classes or channels, of pixels), three options that
    ``{op}_backward`` takes too, `with_overlap`, and more; `with_map` is at that place, there are `options` inputs, and
    coarse logits have `align_corners` after them. Their first three outputs are the overlap sums, the sums of the
    cross-entropy and its map.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.align_corners = inputs[options:]  # of coarse logits
        ctx.options = (*inputs[4:7], *ctx.align_corners)
        ctx.with_overlap, ctx.with_map = inputs[7], inputs[with_map]
        ctx.set_materialize_grads(False)

    def backward(ops: Any, ctx: Any, grad_overlap: Any, grad_sums: Any, grad_map: Any, *_: Any) -> tuple[Any, ...]:
        logits, target, weight, pixel_weight = ctx.saved_tensors
        grad = None
        # Outputs that were not asked for are empty tensors, and so are their gradients.
        grad_overlap = grad_overlap if ctx.with_overlap else None
        grad_map = grad_map if ctx.with_map else None
        if grad_overlap is not None or grad_sums is not None or grad_map is not None:
            if grad_map is not None:
                # The gradient of a map is a pixel weight of its own.
                per_pixel = grad_map if grad_sums is None else grad_map + grad_sums[0].to(grad_map.dtype)
                pixel_weight = per_pixel if pixel_weight is None else per_pixel * pixel_weight
                grad_sums = torch.ones(2, dtype=torch.float64, device=logits.device)
            of_logits = getattr(ops, f"{op}_coarse_backward" if ctx.align_corners else f"{op}_backward")
            grad = of_logits(logits, target, weight, pixel_weight, grad_overlap, grad_sums, *ctx.options)
        return (grad, *[None] * (options - 1 + len(ctx.align_corners)))

    return save, backward
