"""The arguments of dice_ce_loss: what is refused, and with which words."""

from __future__ import annotations

import torch
from torch import Tensor

from segops._dtypes import LABELS
from segops.ops import loss_arguments as common

OP = "dice_ce_loss"


def check_tensors(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    dice_class_weight: Tensor | None,
) -> bool:
    """Whether the logits are of another size than the target and have to be interpolated."""
    common.check_types(OP, logits, target, LABELS, "uint8, int16, int32 or int64")
    if logits.ndim < 3:
        raise ValueError(f"segops.{OP}: logits must be [N, C, *spatial], got {list(logits.shape)}")
    if logits.shape[1] < 1:
        raise ValueError(f"segops.{OP}: logits must have at least one class, got {list(logits.shape)}")
    pixels = (logits.shape[0], *logits.shape[2:])
    interpolate = tuple(target.shape) != pixels
    if interpolate and not (logits.ndim == 4 and target.ndim == 3 and target.shape[0] == logits.shape[0]):
        coarse = " (coarse logits must be [N, C, h, w] and target [N, H, W])" if target.ndim == logits.ndim - 1 else ""
        raise ValueError(
            f"segops.{OP}: target must be {list(pixels)} for logits {list(logits.shape)}, "
            f"got {list(target.shape)}{coarse}"
        )
    if interpolate:
        common.check_pixels_to_interpolate(OP, logits, target)
        pixels = tuple(target.shape)
    common.check_target_device(OP, logits, target)
    common.check_weights(OP, logits, "weight", weight, (logits.shape[1],))
    common.check_weights(OP, logits, "pixel_weight", pixel_weight, pixels)
    common.check_weights(OP, logits, "dice_class_weight", dice_class_weight, (logits.shape[1],))
    return interpolate


def check_options(*, ignore_index: int, label_smoothing: float, include_background: bool, absent_classes: str) -> None:
    """The options that this loss has beside those of all losses."""
    common.check_ignore_index(OP, ignore_index)
    common.require_type(OP, common.NUMBER, "a number", label_smoothing=label_smoothing)
    common.require_type(OP, (bool, torch.SymBool), "a bool", include_background=include_background)
    common.require(OP, 0 <= label_smoothing <= 1, "label_smoothing", "in [0, 1]", label_smoothing)
    known = common.is_one_of(absent_classes, ("count", "skip"))
    common.require(OP, known, "absent_classes", '"count" or "skip"', absent_classes)
