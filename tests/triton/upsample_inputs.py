"""Inputs of the upsampling operators' Triton functions, for tests/triton/calls_upsample_*.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.cases import make_logits


def compiled(size: int = 64) -> Iterator[tuple[str, Tensor]]:
    """An image of each type and layout that has machine code of its own, and what to call it."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("planar", "channels_last"):
            memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            x = torch.zeros(1, 16, size, size, dtype=dtype).contiguous(memory_format=memory_format)
            yield f"{str(dtype).removeprefix('torch.')}, {layout}", x


def fenced() -> Iterator[tuple[Tensor, Tensor]]:
    """Images of odd shapes, each with a gradient of another size in another layout."""
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "expanded")
    turn = 0
    for shape, size in (((2, 3, 5, 7), (11, 19)), ((1, 1, 1, 1), (3, 2)), ((1, 5, 7, 40), (4, 27))):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            turn += 1
            x = make_logits(shape, dtype, layouts[turn % len(layouts)])
            yield x, make_logits((*shape[:2], *size), dtype, layouts[(turn + 1) % len(layouts)])
