"""dice_ce_loss in eager PyTorch, in whatever dtype its logits have: the truth in float64, the yardstick otherwise.

The formulas are those of `segops.reference`; this page only keeps them from being computed in float32 for 16-bit
logits, and gives them the options' public names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segops.ops.loss_arguments import overlap_coefficients
from segops.reference import dice_ce_loss as reference
from tests.ops.loss_eager import combined, fill_weights

#: One of everything that changes the value; each is run on every backend, dtype and layout somewhere.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "jaccard": {"overlap": "jaccard"},
    "tversky": {"overlap": ("tversky", 0.3, 0.7)},
    "tversky without false positives": {"overlap": ("tversky", 0.0, 1.5)},
    "squared": {"squared": True},
    "squared jaccard": {"squared": True, "overlap": "jaccard", "batch_dice": True},
    "large smooth": {"smooth": 1.0},
    "no smooth": {"smooth": 0.0, "batch_dice": True},
    "batch": {"batch_dice": True},
    "no background": {"include_background": False},
    "skip absent": {"absent_classes": "skip"},
    "skip absent, batch, no background": {"absent_classes": "skip", "batch_dice": True, "include_background": False},
    "dice class weight": {"dice_class_weight": "per class"},
    "dice class weight, no background": {
        "dice_class_weight": "per class",
        "include_background": False,
        "batch_dice": True,
    },
    "weight": {"weight": "per class"},
    "pixel weight": {"pixel_weight": "per pixel"},
    "weight and pixel weight": {"weight": "per class", "pixel_weight": "per pixel"},
    "ignore outside": {"ignore_index": 255},
    "ignore negative": {"ignore_index": -1},
    "ignore a class": {"ignore_index": 1},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "smoothing and weights": {"label_smoothing": 0.2, "weight": "per class", "pixel_weight": "per pixel"},
    "sum": {"reduction": "sum", "weight": "per class", "label_smoothing": 0.1},
    "only cross-entropy": {"dice_weight": 0.0},
    "only overlap": {"ce_weight": 0.0},
    "factors": {"ce_weight": 0.3, "dice_weight": -1.7},
    "everything": {
        "weight": "per class",
        "pixel_weight": "per pixel",
        "ignore_index": 2,
        "label_smoothing": 0.05,
        "ce_weight": 0.7,
        "dice_weight": 1.3,
        "overlap": ("tversky", 0.6, 0.4),
        "smooth": 0.1,
        "batch_dice": True,
        "include_background": False,
        "absent_classes": "skip",
        "dice_class_weight": "per class",
        "squared": True,
        "reduction": "sum",
    },
}


def fill(options: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """`options` with "per class" and "per pixel" turned into tensors for these logits."""
    shapes = {"per class": logits.shape[1:2], "per pixel": (logits.shape[0], *logits.shape[2:])}
    return fill_weights(options, shapes, logits)


def eager(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    overlap: Any = "dice",
    smooth: float = 1e-5,
    batch_dice: bool = False,
    include_background: bool = True,
    absent_classes: str = "count",
    dice_class_weight: Tensor | None = None,
    squared: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """`segops.dice_ce_loss` by the reference's formulas, computed in ``logits.dtype``; bad labels are ignored."""
    label = target.long()
    label = torch.where((label < 0) | (label >= logits.shape[1]), ignore_index, label)

    def cast(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(logits.dtype)

    ce_map, share = reference.cross_entropy_map(
        logits, label, cast(weight), cast(pixel_weight), ignore_index, label_smoothing
    )
    if reduction == "none":
        return ce_map
    return combined(
        logits,
        ce_map,
        share,
        reference.overlap_sums(logits, label, ignore_index, squared),
        entropy_weight=ce_weight,
        dice_weight=dice_weight,
        reduction=reduction,
        coefficients=overlap_coefficients("dice_ce_loss", overlap),
        smooth=smooth,
        batch_dice=batch_dice,
        include_background=include_background,
        skip_absent=absent_classes == "skip",
        dice_class_weight=cast(dice_class_weight),
    )
