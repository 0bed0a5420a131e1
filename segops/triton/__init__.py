"""The Triton backend: the operators of the namespace `segops_triton`.

Triton is imported at the first call, not with segops. Whether kernels are compiled or interpreted is settled when
Triton is imported: with TRITON_INTERPRET=1 they run, slowly, on CPU tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

#: The function of this package that implements each operator, as "module.function".
OPERATORS = {
    "upsample_bilinear2d": "upsample_bilinear.upsample_bilinear2d",
    "upsample_bilinear2d_backward": "upsample_bilinear.upsample_bilinear2d_backward",
    "upsample_cat": "upsample_bilinear.upsample_cat",
    "dice_ce_loss_statistics": "dice_ce_loss.statistics",
    "dice_ce_loss_value": "dice_ce_loss.value",
    "dice_ce_loss_backward": "dice_ce_loss.backward",
    "upsample_nearest2d": "upsample_nearest.upsample_nearest2d",
    "upsample_nearest2d_backward": "upsample_nearest.upsample_nearest2d_backward",
    "bed_of_nails2d": "upsample_nearest.bed_of_nails2d",
    "bed_of_nails2d_backward": "upsample_nearest.bed_of_nails2d_backward",
    "upsample_argmax": "upsample_argmax.upsample_argmax",
    "confusion_matrix": "confusion_matrix.confusion_matrix",
    "dice_ce_loss_coarse_statistics": "dice_ce_loss.statistics",
    "dice_ce_loss_coarse_backward": "dice_ce_loss.coarse_backward",
    "dice_bce_loss_statistics": "dice_bce_loss.statistics",
    "dice_bce_loss_backward": "dice_bce_loss.backward",
    "dice_bce_loss_coarse_statistics": "dice_bce_loss.statistics",
    "dice_bce_loss_coarse_backward": "dice_bce_loss.backward",
    "max_pool2d": "max_unpool.max_pool2d",
    "max_unpool2d": "max_unpool.max_unpool2d",
    "max_unpool2d_backward": "max_unpool.max_unpool2d_backward",
    "max_unpool2d_flat": "max_unpool.max_unpool2d_flat",
    "max_unpool2d_flat_backward": "max_unpool.max_unpool2d_flat_backward",
    "dilated_conv2d": "dilated_conv.dilated_conv2d",
    "dilated_conv2d_grad_input": "dilated_conv.dilated_conv2d_grad_input",
    "dilated_conv2d_grad_weight": "dilated_conv.dilated_conv2d_grad_weight",
}


def register(library: torch.library.Library) -> None:
    """Implement every operator of this backend in `library`, a fragment of its namespace that has their schemas."""
    for operator, function in OPERATORS.items():
        for key in ("CPU", "CUDA"):
            library.impl(operator, _at_first_call(*function.split(".")), key)


def _at_first_call(module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)(*args)

    return call


def interpreting() -> bool:
    """Whether Triton's kernels are interpreted in this process (or will be, if Triton is not imported yet)."""
    library = sys.modules.get("triton.language.standard")
    if library is not None:
        return type(library.sum).__name__ == "InterpretedFunction"
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def reason_unavailable(device_type: str) -> str | None:
    """Why this backend cannot run on tensors of `device_type`, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu":
        return (
            None if interpreting() else "Triton runs CPU tensors only with TRITON_INTERPRET=1 set before it is imported"
        )
    if device_type == "cuda":
        return None if torch.version.cuda is not None else "this torch has no CUDA"
    return f"segops has no Triton kernels for device type {device_type!r}"
