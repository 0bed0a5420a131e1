"""The arguments of dice_ce_loss: what is refused, and with which words."""

from __future__ import annotations

import torch
from torch import Tensor

from segops import errors

LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)

INTEGER = (int, torch.SymInt)
NUMBER = (int, float, torch.SymInt, torch.SymFloat)
INF = float("inf")

Overlap = str | tuple[str, float, float]


def overlap_coefficients(overlap: Overlap) -> tuple[float, float, float, float]:
    """(i; j, p, t) of the score (i I + smooth) / (j I + p P + t T + smooth)."""
    if overlap == "dice":
        return 2.0, 0.0, 1.0, 1.0
    if overlap == "jaccard":
        return 1.0, -1.0, 1.0, 1.0
    if isinstance(overlap, tuple | list) and len(overlap) == 3 and overlap[0] == "tversky":
        alpha, beta = overlap[1:]
        if not (isinstance(alpha, NUMBER) and isinstance(beta, NUMBER) and 0 <= alpha < INF and 0 <= beta < INF):
            raise ValueError(f"segops.dice_ce_loss: tversky needs finite alpha, beta >= 0, got {alpha}, {beta}")
        return 1.0, float(1 - alpha - beta), float(alpha), float(beta)
    raise ValueError(
        f'segops.dice_ce_loss: overlap must be "dice", "jaccard" or ("tversky", alpha, beta), got {overlap!r}'
    )


def check_tensors(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    dice_class_weight: Tensor | None,
) -> bool:
    """Whether the logits are of another size than the target and have to be interpolated."""
    for name, t in (("logits", logits), ("target", target)):
        if not isinstance(t, Tensor):
            raise TypeError(f"segops.dice_ce_loss: {name} must be a Tensor, got {type(t).__name__}")
    if logits.dtype not in LOGITS_DTYPES:
        raise TypeError(
            f"segops.dice_ce_loss: logits must be float32, float64, bfloat16 or float16, got {_name(logits.dtype)}"
        )
    if target.dtype not in LABEL_DTYPES:
        raise TypeError(f"segops.dice_ce_loss: target must be uint8, int16, int32 or int64, got {_name(target.dtype)}")
    if logits.ndim < 3:
        raise ValueError(f"segops.dice_ce_loss: logits must be [N, C, *spatial], got {list(logits.shape)}")
    if logits.shape[1] < 1:
        raise ValueError(f"segops.dice_ce_loss: logits must have at least one class, got {list(logits.shape)}")
    pixels = (logits.shape[0], *logits.shape[2:])
    interpolate = tuple(target.shape) != pixels
    if interpolate and not (logits.ndim == 4 and target.ndim == 3 and target.shape[0] == logits.shape[0]):
        coarse = " (coarse logits must be [N, C, h, w] and target [N, H, W])" if target.ndim == logits.ndim - 1 else ""
        raise ValueError(
            f"segops.dice_ce_loss: target must be {list(pixels)} for logits {list(logits.shape)}, "
            f"got {list(target.shape)}{coarse}"
        )
    if interpolate:
        for name, t in (("logits", logits), ("target", target)):
            if t.shape[-2] < 1 or t.shape[-1] < 1:
                raise ValueError(
                    f"segops.dice_ce_loss: {name} must have at least one pixel to be interpolated, got {list(t.shape)}"
                )
        pixels = tuple(target.shape)
    if target.device != logits.device:
        raise ValueError(f"segops.dice_ce_loss: target must be on {logits.device} like logits, got {target.device}")
    optional: tuple[tuple[str, Tensor | None, tuple[int, ...]], ...] = (
        ("weight", weight, (logits.shape[1],)),
        ("pixel_weight", pixel_weight, pixels),
        ("dice_class_weight", dice_class_weight, (logits.shape[1],)),
    )
    for name, given, shape in optional:
        if given is None:
            continue
        if not isinstance(given, Tensor):
            raise TypeError(f"segops.dice_ce_loss: {name} must be a Tensor or None, got {type(given).__name__}")
        if not given.dtype.is_floating_point:
            raise TypeError(f"segops.dice_ce_loss: {name} must be floating point, got {_name(given.dtype)}")
        if tuple(given.shape) != shape:
            raise ValueError(f"segops.dice_ce_loss: {name} must be {list(shape)}, got {list(given.shape)}")
        if given.device != logits.device:
            raise ValueError(f"segops.dice_ce_loss: {name} must be on {logits.device} like logits, got {given.device}")
        if given.requires_grad:
            raise ValueError(f"segops.dice_ce_loss: {name} must not require a gradient; pass {name}.detach()")
    return interpolate


def is_coarse(logits: Tensor, target: Tensor) -> bool:
    """Whether the interpolation from logits [N, C, h, w] to target [N, H, W] shrinks neither dimension."""
    return logits.shape[2] <= target.shape[1] and logits.shape[3] <= target.shape[2]


def check_options(
    *,
    ignore_index: int,
    label_smoothing: float,
    ce_weight: float,
    dice_weight: float,
    smooth: float,
    batch_dice: bool,
    include_background: bool,
    absent_classes: str,
    squared: bool,
    align_corners: bool,
    reduction: str,
    return_parts: bool,
    validate: str,
) -> None:
    def require(holds: bool, name: str, expected: str, value: object) -> None:
        if not holds:
            raise ValueError(f"segops.dice_ce_loss: {name} must be {expected}, got {value!r}")

    def require_type(kind: type | tuple[type, ...], expected: str, **options: object) -> None:
        for name, value in options.items():
            if not isinstance(value, kind):
                raise TypeError(f"segops.dice_ce_loss: {name} must be {expected}, got {type(value).__name__}")

    require_type(INTEGER, "an int", ignore_index=ignore_index)
    require_type(
        NUMBER,
        "a number",
        label_smoothing=label_smoothing,
        ce_weight=ce_weight,
        dice_weight=dice_weight,
        smooth=smooth,
    )
    require_type(
        (bool, torch.SymBool),
        "a bool",
        batch_dice=batch_dice,
        include_background=include_background,
        squared=squared,
        align_corners=align_corners,
        return_parts=return_parts,
    )
    require(-(1 << 63) <= ignore_index < 1 << 63, "ignore_index", "an int of 64 bits", ignore_index)
    require(0 <= label_smoothing <= 1, "label_smoothing", "in [0, 1]", label_smoothing)
    require(-INF < ce_weight < INF, "ce_weight", "finite", ce_weight)
    require(-INF < dice_weight < INF, "dice_weight", "finite", dice_weight)
    require(0 <= smooth < INF, "smooth", "finite and >= 0", smooth)
    require(absent_classes in ("count", "skip"), "absent_classes", '"count" or "skip"', absent_classes)
    require(reduction in ("mean", "sum", "none"), "reduction", '"mean", "sum" or "none"', reduction)
    require(validate in errors.VALIDATE, "validate", '"raise", "count" or "off"', validate)
    if reduction == "none":
        require(
            dice_weight == 0,
            "dice_weight",
            '0 with reduction="none" (the map is that of the cross-entropy)',
            dice_weight,
        )
        require(not return_parts, "return_parts", 'False with reduction="none"', return_parts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
