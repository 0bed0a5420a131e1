"""dice_bce_loss in eager PyTorch, in whatever dtype its logits have: the truth in float64, the yardstick otherwise."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import segops
from segops.ops.loss_arguments import overlap_coefficients
from segops.reference import dice_bce_loss as reference
from segops.reference import dice_ce_loss as sums_reference
from tests.ops.loss_eager import combined, fill_weights
from tests.tolerances import Comparison, compare

#: One of everything that changes the value; each is run on every backend, dtype and layout somewhere.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "jaccard": {"overlap": "jaccard"},
    "tversky": {"overlap": ("tversky", 0.3, 0.7)},
    "squared": {"squared": True},
    "squared jaccard": {"squared": True, "overlap": "jaccard", "batch_dice": True},
    "no smooth": {"smooth": 0.0, "batch_dice": True},
    "pos weight": {"pos_weight": "per channel"},
    "pixel weight": {"pixel_weight": "per pixel"},
    "element weight": {"pixel_weight": "per element", "pos_weight": "per channel"},
    "ignore outside": {"ignore_index": 255},
    "ignore a class": {"ignore_index": 0},
    "focal 1": {"focal_gamma": 1.0},
    "focal 2": {"focal_gamma": 2.0, "pos_weight": "per channel"},
    "focal 0.5": {"focal_gamma": 0.5, "ignore_index": 255},
    "focal 3.7": {"focal_gamma": 3.7, "pixel_weight": "per element"},
    "sum": {"reduction": "sum", "pos_weight": "per channel"},
    "only cross-entropy": {"dice_weight": 0.0, "focal_gamma": 1.5},
    "only overlap": {"bce_weight": 0.0},
    "factors": {"bce_weight": 0.3, "dice_weight": -1.7},
    "everything": {
        "pos_weight": "per channel",
        "pixel_weight": "per pixel",
        "ignore_index": 255,
        "focal_gamma": 2.5,
        "bce_weight": 0.7,
        "dice_weight": 1.3,
        "overlap": ("tversky", 0.6, 0.4),
        "smooth": 0.1,
        "batch_dice": True,
        "squared": True,
        "reduction": "sum",
    },
}

LABEL_DTYPES = (torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def make_target(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.uint8,
    ignore_index: int | None = None,
    seed: int = 1,
    device: str = "cpu",
) -> Tensor:
    """Labels of zero and one, soft ones (exact in every dtype) if `dtype` has them, and a tenth of `ignore_index`."""
    generator = torch.Generator().manual_seed(seed)
    steps = 8 if dtype.is_floating_point else 1
    target = torch.randint(0, steps + 1, shape, generator=generator) / steps
    if ignore_index is not None and dtype != torch.bool:
        target[torch.rand(shape, generator=generator) < 0.1] = ignore_index
    return target.to(dtype).to(device)


def fill(options: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """`options` with "per channel", "per pixel" and "per element" turned into tensors for these logits."""
    n, c, *spatial = logits.shape if logits.ndim > 3 else (logits.shape[0], 1, *logits.shape[1:])
    shapes = {"per channel": (c,), "per pixel": (n, *spatial), "per element": tuple(logits.shape)}
    return fill_weights(options, shapes, logits)


def eager(
    logits: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int | None = None,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    focal_gamma: float = 0.0,
    overlap: Any = "dice",
    smooth: float = 1e-5,
    batch_dice: bool = False,
    squared: bool = False,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """`segops.dice_bce_loss` by the reference's formulas, computed in ``logits.dtype``; bad labels are ignored."""
    shape = target.shape
    if logits.ndim == 3:
        logits, target = logits.unsqueeze(1), target.unsqueeze(1)
    if logits.shape != target.shape:
        logits = sums_reference.interpolated(logits, target.shape[2:], align_corners)
    if pos_weight is not None:
        pos_weight = pos_weight.reshape(-1).expand(logits.shape[1])
    if pixel_weight is not None and pixel_weight.ndim < logits.ndim:
        pixel_weight = pixel_weight.unsqueeze(1)
    valid = ~(reference.ignored(target, ignore_index) | reference.bad_labels(target, ignore_index))
    bce_map, share = reference.bce_map(logits, target, valid, pos_weight, pixel_weight, focal_gamma)
    if reduction == "none":
        return bce_map.view(shape)
    return combined(
        logits,
        bce_map,
        share,
        reference.overlap_sums(logits, target, valid, squared),
        entropy_weight=bce_weight,
        dice_weight=dice_weight,
        reduction=reduction,
        coefficients=overlap_coefficients("dice_bce_loss", overlap),
        smooth=smooth,
        batch_dice=batch_dice,
        include_background=True,
        skip_absent=False,
        dice_class_weight=None,
    )


def check(
    logits: Tensor, target: Tensor, backend: str, options: dict[str, Any] | None = None, **scales: Any
) -> Comparison:
    """Value and gradient against the eager formula, coarse logits too."""
    like = logits if logits.shape == target.shape else logits.new_empty(target.shape)
    arguments = fill(options or {}, like)
    ours = functools.partial(segops.dice_bce_loss, target=target, backend=backend, **arguments)
    return compare(ours, functools.partial(eager, target=target, **arguments), logits, **scales)
