"""Memory layouts: what operators refuse, and what kernels read as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def check_dense(op: str, name: str, x: Any) -> None:
    """A TypeError unless x is a tensor with strides: none that is sparse, nested or of a library's own layout."""
    if not isinstance(x, Tensor):
        raise TypeError(f"segops.{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"segops.{op}: {name} must be a dense tensor, got {'nested' if x.is_nested else x.layout}")


def pixel_stride(x: Tensor) -> int | None:
    """The stride between pixels of x [N, C, *spatial]: 1 is planar, more is channels last, None needs a copy."""
    innermost, expected = None, 0
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size == 1:
            continue
        if innermost is None:
            innermost = stride
        elif stride != expected:
            return None
        expected = stride * size
    if innermost is None or innermost == 1:
        return 1
    return innermost if x.stride(1) == 1 else None


def empty_like_pixels(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor of the shape of x: channels last where kernels read x as that, otherwise contiguous."""
    if pixel_stride(x) not in (None, 1):
        channels_last = x.movedim(1, -1)
        return torch.empty_like(channels_last, dtype=dtype, memory_format=torch.contiguous_format).movedim(-1, 1)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def empty_image(like: Tensor, channels: Any, height: Any, width: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor [N, channels, height, width], dense, in the memory format of `like` [N, C, h, w]."""
    shape, layout = (like.shape[0], channels, height, width), suggest_memory_format(like)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)
