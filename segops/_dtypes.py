"""The dtypes of operators: what they take, and what they compute in."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """What sums of elements of x are held in: float64 for itself, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """As messages have it: without the module."""
    return str(dtype).removeprefix("torch.")
