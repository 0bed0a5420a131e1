"""The arguments of dice_bce_loss: what is refused, with which words, and the shapes that operators take."""

from __future__ import annotations

import torch
from torch import Tensor

from segops._dtypes import FLOATING, accumulation_dtype
from segops.ops import loss_arguments as common

OP = "dice_bce_loss"
LABEL_DTYPES = (torch.bool, torch.uint8, *FLOATING)


def check_tensors(logits: Tensor, target: Tensor, pos_weight: Tensor | None, pixel_weight: Tensor | None) -> bool:
    """Whether the logits are of another size than the target and have to be interpolated."""
    common.check_types(OP, logits, target, LABEL_DTYPES, "bool, uint8 or floating point")
    if logits.ndim < 3:
        raise ValueError(f"segops.{OP}: logits must be [N, H, W] or [N, C, *spatial], got {list(logits.shape)}")
    leading = 1 if logits.ndim == 3 else 2
    channels = 1 if logits.ndim == 3 else logits.shape[1]
    if channels < 1:
        raise ValueError(f"segops.{OP}: logits must have at least one channel, got {list(logits.shape)}")
    interpolate = target.shape != logits.shape
    if interpolate and not (
        target.ndim == logits.ndim and logits.ndim <= 4 and target.shape[:leading] == logits.shape[:leading]
    ):
        coarse = " (coarse logits must be [N, h, w] or [N, C, h, w])" if target.ndim == logits.ndim else ""
        raise ValueError(
            f"segops.{OP}: target must be {list(logits.shape)} like logits, got {list(target.shape)}{coarse}"
        )
    if interpolate:
        common.check_pixels_to_interpolate(OP, logits, target)
    common.check_target_device(OP, logits, target)
    if target.requires_grad:
        raise ValueError(f"segops.{OP}: target must not require a gradient; pass target.detach()")
    spatial = tuple(target.shape[leading:])
    ones = (1,) * len(spatial)
    each = (channels,)
    if not (isinstance(pos_weight, Tensor) and pos_weight.numel() == 1):
        common.check_weights(OP, logits, "pos_weight", pos_weight, each, (*each, *ones), (1, *each, *ones))
    else:
        common.check_weights(OP, logits, "pos_weight", pos_weight, tuple(pos_weight.shape))
    n = target.shape[0]
    common.check_weights(OP, logits, "pixel_weight", pixel_weight, (n, *spatial), (n, 1, *spatial), tuple(target.shape))
    return interpolate


def check_options(*, ignore_index: int | None, focal_gamma: float) -> None:
    """The options that this loss has beside those of all losses."""
    if ignore_index is not None:
        common.check_ignore_index(OP, ignore_index)
    common.require_type(OP, common.NUMBER, "a number", focal_gamma=focal_gamma)
    common.require(OP, 0 <= focal_gamma <= common.LARGEST, "focal_gamma", "finite and >= 0", focal_gamma)


def with_channels(
    logits: Tensor, target: Tensor, pos_weight: Tensor | None, pixel_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The tensors as operators take them: [N, C, *spatial], [C] and [N, 1 or C, *spatial]."""
    if logits.ndim == 3:
        logits, target = logits.unsqueeze(1), target.unsqueeze(1)
    if target.dtype == torch.bool:
        target = target.view(torch.uint8)
    if pos_weight is not None:
        pos_weight = pos_weight.to(torch.float64).reshape(-1).expand(logits.shape[1]).contiguous()
    if pixel_weight is not None:
        pixel_weight = pixel_weight.to(accumulation_dtype(logits))
        if pixel_weight.ndim < logits.ndim:
            pixel_weight = pixel_weight.unsqueeze(1)
    return logits, target, pos_weight, pixel_weight
