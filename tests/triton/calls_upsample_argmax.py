"""Calls of upsample_argmax's Triton operator: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from segops.triton import upsample_argmax as op
from tests.cases import make_logits

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("out_height", "classes")

#: What is compiled: logits dtype, labels dtype, layout.
CASES = (
    ("float32", "uint8", "planar"),
    ("bfloat16", "uint8", "channels_last"),
    ("float32", "int64", "planar"),
    ("float64", "uint8", "planar"),
)


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for dtype, labels, layout in CASES:
        logits = torch.zeros(1, 19, 16, 16, dtype=getattr(torch, dtype))
        if layout == "channels_last":
            logits = logits.to(memory_format=torch.channels_last)
        call = functools.partial(op.upsample_argmax, logits, 128, 128, False, getattr(torch, labels), True)
        yield f"{dtype}, {labels}, {layout}", call


def fenced() -> None:
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "batch_slice")
    dtypes = ((torch.float32, torch.uint8), (torch.bfloat16, torch.int32), (torch.float64, torch.int64))
    turn = 0
    for shape, size in (((2, 5, 7, 11), (13, 17)), ((1, 3, 1, 1), (5, 3)), ((1, 2, 9, 30), (4, 7))):
        for dtype, labels in dtypes:
            turn += 1
            logits = make_logits(shape, dtype, layouts[turn % len(layouts)])
            for align_corners in (False, True):
                op.upsample_argmax(logits, *size, align_corners, labels, turn % 2 == 0)
