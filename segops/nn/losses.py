"""Losses as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segops.ops.deep_supervision_loss import deep_supervision_loss
from segops.ops.dice_bce_loss import DiceBCELossParts, dice_bce_loss
from segops.ops.dice_ce_loss import DiceCELossParts, dice_ce_loss
from segops.ops.loss_arguments import Overlap


class _Loss(nn.Module):
    options: dict[str, Any]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


class DiceCELoss(_Loss):
    """:func:`segops.dice_ce_loss` with its options held by a module.

    Args: the keyword arguments of :func:`segops.dice_ce_loss` but `pixel_weight`, which goes to the call. `weight` and
        `dice_class_weight` become buffers that are not saved with the model, as they are options rather than state.

    Shape:
        logits [N, C, *spatial] (or coarse, [N, C, h, w]), target [N, *spatial]; returns what the function returns.
    """

    weight: Tensor | None
    dice_class_weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        overlap: Overlap = "dice",
        smooth: float = 1e-5,
        batch_dice: bool = False,
        include_background: bool = True,
        absent_classes: str = "count",
        dice_class_weight: Tensor | None = None,
        squared: bool = False,
        align_corners: bool = False,
        reduction: str = "mean",
        return_parts: bool = False,
        process_group: Any = None,
        validate: str = "raise",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("dice_class_weight", dice_class_weight, persistent=False)
        self.options = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "ce_weight": ce_weight,
            "dice_weight": dice_weight,
            "overlap": overlap,
            "smooth": smooth,
            "batch_dice": batch_dice,
            "include_background": include_background,
            "absent_classes": absent_classes,
            "squared": squared,
            "align_corners": align_corners,
            "reduction": reduction,
            "return_parts": return_parts,
            "process_group": process_group,
            "validate": validate,
            "backend": backend,
        }

    def forward(
        self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, DiceCELossParts]:
        return dice_ce_loss(
            logits,
            target,
            weight=self.weight,
            dice_class_weight=self.dice_class_weight,
            pixel_weight=pixel_weight,
            **self.options,
        )


class DiceBCELoss(_Loss):
    """:func:`segops.dice_bce_loss` with its options held by a module.

    Args: the keyword arguments of :func:`segops.dice_bce_loss` but `pixel_weight`, which goes to the call. `pos_weight`
        becomes a buffer that is not saved with the model, as it is an option rather than state.

    Shape:
        logits [N, H, W] or [N, C, *spatial] (or coarse), target of the same layout; returns what the function returns.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        pos_weight: Tensor | None = None,
        ignore_index: int | None = None,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
        focal_gamma: float = 0.0,
        overlap: Overlap = "dice",
        smooth: float = 1e-5,
        batch_dice: bool = False,
        squared: bool = False,
        align_corners: bool = False,
        reduction: str = "mean",
        return_parts: bool = False,
        process_group: Any = None,
        validate: str = "raise",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("pos_weight", pos_weight, persistent=False)
        self.options = {
            "ignore_index": ignore_index,
            "bce_weight": bce_weight,
            "dice_weight": dice_weight,
            "focal_gamma": focal_gamma,
            "overlap": overlap,
            "smooth": smooth,
            "batch_dice": batch_dice,
            "squared": squared,
            "align_corners": align_corners,
            "reduction": reduction,
            "return_parts": return_parts,
            "process_group": process_group,
            "validate": validate,
            "backend": backend,
        }

    def forward(
        self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, DiceBCELossParts]:
        return dice_bce_loss(logits, target, pos_weight=self.pos_weight, pixel_weight=pixel_weight, **self.options)


class DeepSupervisionLoss(nn.Module):
    """:func:`segops.deep_supervision_loss` with its weights and options held by a module.

    Args:
        weights: one number for each head.
        loss: "dice_ce" or "dice_bce".
        options: those of :class:`DiceCELoss`, or of :class:`DiceBCELoss`, whose buffers this module has, too.

    Shape:
        logits: a list of [N, C, h, w], target as for the loss; returns what the function returns.
    """

    def __init__(self, weights: Sequence[float], *, loss: str = "dice_ce", **options: Any) -> None:
        super().__init__()
        modules = {"dice_ce": DiceCELoss, "dice_bce": DiceBCELoss}
        if loss not in modules:
            raise ValueError(f'segops.nn.DeepSupervisionLoss: loss must be "dice_ce" or "dice_bce", got {loss!r}')
        self.weights = list(weights)
        self.kind = loss
        self.loss = modules[loss](**options)

    def forward(
        self, logits: Sequence[Tensor], target: Tensor, pixel_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, list[DiceCELossParts] | list[DiceBCELossParts]]:
        return deep_supervision_loss(
            logits,
            target,
            self.weights,
            loss=self.kind,
            pixel_weight=pixel_weight,
            **dict(self.loss.named_buffers()),
            **self.loss.options,
        )

    def extra_repr(self) -> str:
        return f"weights={self.weights!r}"
