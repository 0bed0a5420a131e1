"""What the arguments of the losses have in common: dtypes, and what is refused, with which words.

`op` names the function that an error speaks of.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

import torch
from torch import Tensor

from segops import errors
from segops._dtypes import FLOATING, accumulation_dtype, dtype_name
from segops._layout import check_dense

INTEGER = (int, torch.SymInt)
NUMBER = (int, float, torch.SymInt, torch.SymFloat)
LARGEST = sys.float_info.max  # an int beyond it is no float

Overlap = str | tuple[str, float, float]


def result_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of a loss: that of the logits, under autocast at least float32."""
    kind = logits.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return accumulation_dtype(logits) if autocast else logits.dtype


def overlap_coefficients(op: str, overlap: Overlap) -> tuple[float, float, float, float]:
    """(i; j, p, t) of the score (i I + smooth) / (j I + p P + t T + smooth)."""
    if is_one_of(overlap, ("dice",)):
        return 2.0, 0.0, 1.0, 1.0
    if is_one_of(overlap, ("jaccard",)):
        return 1.0, -1.0, 1.0, 1.0
    if isinstance(overlap, tuple | list) and len(overlap) == 3 and is_one_of(overlap[0], ("tversky",)):
        alpha, beta = overlap[1:]
        if not (
            isinstance(alpha, NUMBER) and isinstance(beta, NUMBER) and 0 <= alpha <= LARGEST and 0 <= beta <= LARGEST
        ):
            raise ValueError(f"segops.{op}: tversky needs finite alpha, beta >= 0, got {alpha}, {beta}")
        return 1.0, float(1 - alpha - beta), float(alpha), float(beta)
    raise ValueError(f'segops.{op}: overlap must be "dice", "jaccard" or ("tversky", alpha, beta), got {overlap!r}')


def is_one_of(value: object, words: Collection[str]) -> bool:
    """Also for what cannot be compared or hashed."""
    return isinstance(value, str) and value in words


def require(op: str, holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"segops.{op}: {name} must be {expected}, got {value!r}")


def require_type(op: str, kind: type | tuple[type, ...], expected: str, **options: object) -> None:
    for name, value in options.items():
        if not isinstance(value, kind):
            raise TypeError(f"segops.{op}: {name} must be {expected}, got {type(value).__name__}")


def check_options(
    op: str,
    *,
    term: str,
    term_weight: float,
    dice_weight: float,
    smooth: float,
    batch_dice: bool,
    squared: bool,
    align_corners: bool,
    reduction: str,
    return_parts: bool,
    validate: str,
) -> None:
    """The options that all losses have; `term` is the one per pixel ("ce"), `term_weight` its factor."""
    weight_of = f"{term}_weight"
    require_type(op, NUMBER, "a number", **{weight_of: term_weight}, dice_weight=dice_weight, smooth=smooth)
    require_type(
        op,
        (bool, torch.SymBool),
        "a bool",
        batch_dice=batch_dice,
        squared=squared,
        align_corners=align_corners,
        return_parts=return_parts,
    )
    require(op, -LARGEST <= term_weight <= LARGEST, weight_of, "finite", term_weight)
    require(op, -LARGEST <= dice_weight <= LARGEST, "dice_weight", "finite", dice_weight)
    require(op, 0 <= smooth <= LARGEST, "smooth", "finite and >= 0", smooth)
    require(op, is_one_of(reduction, ("mean", "sum", "none")), "reduction", '"mean", "sum" or "none"', reduction)
    require(op, is_one_of(validate, errors.VALIDATE), "validate", '"raise", "count" or "off"', validate)
    if reduction == "none":
        require(op, dice_weight == 0, "dice_weight", '0 with reduction="none" (the map is per pixel)', dice_weight)
        require(op, not return_parts, "return_parts", 'False with reduction="none"', return_parts)


def check_ignore_index(op: str, ignore_index: int) -> None:
    require_type(op, INTEGER, "an int", ignore_index=ignore_index)
    require(op, -(1 << 63) <= ignore_index < 1 << 63, "ignore_index", "an int of 64 bits", ignore_index)


def check_types(op: str, logits: Tensor, target: Tensor, label_dtypes: Collection[torch.dtype], labels: str) -> None:
    """The types of logits and target; `labels` are the dtypes of targets in words."""
    for name, t in (("logits", logits), ("target", target)):
        check_dense(op, name, t)
    if logits.dtype not in FLOATING:
        raise TypeError(
            f"segops.{op}: logits must be float32, float64, bfloat16 or float16, got {dtype_name(logits.dtype)}"
        )
    if target.dtype not in label_dtypes:
        raise TypeError(f"segops.{op}: target must be {labels}, got {dtype_name(target.dtype)}")


def check_target_device(op: str, logits: Tensor, target: Tensor) -> None:
    if target.device != logits.device:
        raise ValueError(f"segops.{op}: target must be on {logits.device} like logits, got {target.device}")


def check_pixels_to_interpolate(op: str, logits: Tensor, target: Tensor) -> None:
    for name, t in (("logits", logits), ("target", target)):
        if t.shape[-2] < 1 or t.shape[-1] < 1:
            raise ValueError(
                f"segops.{op}: {name} must have at least one pixel to be interpolated, got {list(t.shape)}"
            )


def check_weights(op: str, logits: Tensor, name: str, given: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """An optional tensor of weights, of one of these shapes."""
    if given is None:
        return
    check_dense(op, name, given)
    if not given.dtype.is_floating_point:
        raise TypeError(f"segops.{op}: {name} must be floating point, got {dtype_name(given.dtype)}")
    if tuple(given.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"segops.{op}: {name} must be {expected}, got {list(given.shape)}")
    if given.device != logits.device:
        raise ValueError(f"segops.{op}: {name} must be on {logits.device} like logits, got {given.device}")
    if given.requires_grad:
        raise ValueError(f"segops.{op}: {name} must not require a gradient; pass {name}.detach()")


def is_coarse(logits: Tensor, target: Tensor) -> bool:
    """Whether the interpolation of the last two dimensions, of logits to those of the target, shrinks neither."""
    return logits.shape[-2] <= target.shape[-2] and logits.shape[-1] <= target.shape[-1]
