"""deep_supervision_loss: a loss of several heads, coarse ones too, against one target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segops._layout import check_dense
from segops.ops.dice_bce_loss import DiceBCELossParts, dice_bce_loss
from segops.ops.dice_ce_loss import DiceCELossParts, dice_ce_loss
from segops.ops.loss_arguments import LARGEST, NUMBER, is_one_of

_LOSSES: dict[str, Callable[..., Any]] = {"dice_ce": dice_ce_loss, "dice_bce": dice_bce_loss}


def deep_supervision_loss(
    logits: Sequence[Tensor], target: Tensor, weights: Sequence[float], *, loss: str = "dice_ce", **options: Any
) -> Tensor | tuple[Tensor, list[DiceCELossParts] | list[DiceBCELossParts]]:
    """The sum of ``weights[i] * dice_ce_loss(logits[i], target, **options)``, or of dice_bce_loss.

    Every head is compared with the one target at its full size, as in Lee et al., "Deeply-Supervised Nets" (2015): a
    head of a lower resolution stands for its bilinear interpolation, which is never in memory. The labels are checked
    once.

    Args:
        logits: heads of one batch and one number of classes, each [N, C, h, w] with a height and width of its own (or
            [N, C, *spatial], of the target's size); with "dice_bce" also [N, h, w].
        target: as in the function of `loss`, to which also `options` belong.
        weights: one number for each head, used as given; a head of weight zero is left out.
        loss: "dice_ce" for :func:`segops.dice_ce_loss`, "dice_bce" for :func:`segops.dice_bce_loss`.
        options: the keyword arguments of that function, the same for every head.

    Returns:
        The loss; with ``return_parts=True`` the pair (loss, list of that function's parts, one for each head).

    Raises:
        TypeError, ValueError: as that function, for lists that do not fit each other, and for another `loss`.

    Examples:
        >>> heads = [torch.zeros(1, 3, size, size) for size in (16, 8, 4)]
        >>> target = torch.zeros(1, 16, 16, dtype=torch.int64)
        >>> f"{segops.deep_supervision_loss(heads, target, [1.0, 0.5, 0.25], dice_weight=0):.4f}"  # 1.75 log 3
        '1.9226'
    """
    if not is_one_of(loss, _LOSSES):
        raise ValueError(f'segops.deep_supervision_loss: loss must be "dice_ce" or "dice_bce", got {loss!r}')
    _check(logits, weights, loss)
    return_parts = options.get("return_parts", False)
    total: Tensor | None = None
    parts: list[Any] = []
    for head, weight in zip(logits, weights, strict=True):
        if weight == 0 and return_parts is not True:
            continue
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0):
            result: Any = _LOSSES[loss](head, target, **options)
        options["validate"] = "off"  # the first head has checked the labels
        if isinstance(result, tuple):
            of_head, own_parts = result
            parts.append(own_parts)
        else:
            of_head = result
        if weight != 0:
            total = weight * of_head if total is None else total + weight * of_head
    assert total is not None
    return (total, parts) if return_parts else total


def _check(logits: Sequence[Tensor], weights: Sequence[float], loss: str) -> None:
    for name, given in (("logits", logits), ("weights", weights)):
        if not isinstance(given, list | tuple):
            raise TypeError(f"segops.deep_supervision_loss: {name} must be a list or tuple, got {type(given).__name__}")
    if len(logits) != len(weights):
        raise ValueError(
            f"segops.deep_supervision_loss: weights must have one number for each of {len(logits)} logits, "
            f"got {len(weights)}"
        )
    for i, (head, weight) in enumerate(zip(logits, weights, strict=True)):
        check_dense("deep_supervision_loss", f"logits[{i}]", head)
        leading = 1 if loss == "dice_bce" and head.ndim == 3 else 2  # [N, h, w] has no channels
        if head.shape[:leading] != logits[0].shape[:leading]:
            dimensions = "first dimension" if leading == 1 else "first two dimensions"
            raise ValueError(
                f"segops.deep_supervision_loss: logits[{i}] must be {list(logits[0].shape[:leading])} in its "
                f"{dimensions} like logits[0], got {list(head.shape)}"
            )
        if not isinstance(weight, NUMBER):
            raise TypeError(f"segops.deep_supervision_loss: weights[{i}] must be a number, got {type(weight).__name__}")
        if not -LARGEST <= weight <= LARGEST:
            raise ValueError(f"segops.deep_supervision_loss: weights[{i}] must be finite, got {weight!r}")
    if all(weight == 0 for weight in weights):
        raise ValueError(f"segops.deep_supervision_loss: weights must not all be zero, got {list(weights)!r}")
