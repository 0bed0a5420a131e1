"""Calls of max_unpool's Triton operators: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from segops.errors import RECORD
from segops.triton import max_unpool as op
from tests.cases import make_logits

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("height", "channels")

#: [kernel, stride, padding, dilation] of both axes.
PAIRS = [2, 2, 2, 2, 0, 0, 1, 1]
OVERLAPPING = [3, 3, 2, 2, 1, 1, 1, 1]
LARGE = [5, 5, 1, 2, 2, 2, 1, 1]


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for layout in ("planar", "channels_last"):
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        for name, window, dtype in (
            ("2x2", PAIRS, torch.float32),
            ("2x2", PAIRS, torch.bfloat16),
            ("3x3", OVERLAPPING, torch.float32),
        ):
            fine = torch.zeros(1, 16, 64, 64, dtype=dtype).contiguous(memory_format=memory_format)
            coarse = torch.zeros(1, 16, 32, 32, dtype=dtype).contiguous(memory_format=memory_format)
            local, shown = coarse.to(torch.uint8), f"{name}, {str(dtype).removeprefix('torch.')}, {layout}"
            yield shown, functools.partial(op.max_pool2d, fine, window, False)
            yield shown, functools.partial(op.max_unpool2d, coarse, local, 64, 64, window, False, RECORD)
            yield shown, functools.partial(op.max_unpool2d_backward, fine, local, window, False)
        flat, shown = coarse.long(), f"float32, {layout}"
        yield f"sum, 3x3, {shown}", functools.partial(op.max_unpool2d, coarse, local, 64, 64, window, True, RECORD)
        yield f"5x5, {shown}", functools.partial(op.max_pool2d, fine, LARGE, False)
        yield shown, functools.partial(op.max_unpool2d_flat, coarse, flat, 64, 64, False, RECORD)
        yield f"sum, {shown}", functools.partial(op.max_unpool2d_flat, coarse, flat, 64, 64, True, RECORD)
        yield shown, functools.partial(op.max_unpool2d_flat_backward, fine, flat)


def fenced() -> None:
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "expanded")
    cases = (
        (PAIRS, True, (7, 9)),
        (PAIRS, False, (8, 70)),
        (OVERLAPPING, False, (5, 11)),
        (LARGE, True, (5, 6)),
        ([2, 3, 2, 3, 1, 1, 2, 1], False, (6, 7)),
        ([1, 1, 1, 1, 0, 0, 1, 1], False, (1, 1)),
    )
    for turn, (window, ceil_mode, size) in enumerate(cases):
        dtype = (torch.float32, torch.bfloat16, torch.float64)[turn % 3]
        x = make_logits((2, 3, *size), dtype, layouts[turn % len(layouts)])
        output, indices = op.max_pool2d(x, window, ceil_mode)
        grad = make_logits((2, 3, *size), dtype, layouts[(turn + 1) % len(layouts)])
        # Every index there is, in the last places too; and some far away.
        anything = torch.arange(indices.numel()).flip(0).view(indices.shape).to(torch.uint8)
        far = torch.full_like(indices, 1 << 40, dtype=torch.int64) * (1 - 2 * (turn % 2))
        for accumulate in (False, True):
            op.max_unpool2d(output, anything, *size, window, accumulate, RECORD)
            op.max_unpool2d_backward(grad, anything, window, accumulate)
            op.max_unpool2d_flat(output, anything.long() if accumulate else far, *size, accumulate, RECORD)
        for flat in (anything.long(), far):
            op.max_unpool2d_flat_backward(grad, flat)
