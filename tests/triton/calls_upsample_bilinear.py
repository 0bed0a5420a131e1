"""Calls of upsample_bilinear's Triton operators: what is compiled for its machine code, what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from segops.triton import upsample_bilinear as op
from tests.cases import make_logits

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("height", "channels")


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("planar", "channels_last"):
            memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            x = torch.zeros(1, 16, 64, 64, dtype=dtype).contiguous(memory_format=memory_format)
            skip = torch.zeros(1, 16, 128, 128, dtype=dtype).contiguous(memory_format=memory_format)
            shown = f"{str(dtype).removeprefix('torch.')}, {layout}"
            yield shown, functools.partial(op.upsample_cat, x, skip, False, True)
            yield f"backward, {shown}", functools.partial(op.upsample_bilinear2d_backward, x, 32, 32, False, 0.0, 0.0)


def fenced() -> None:
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "expanded")
    turn = 0
    for shape, (height, width) in (((2, 3, 5, 7), (11, 19)), ((1, 1, 1, 1), (3, 2)), ((1, 5, 7, 40), (4, 27))):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            turn += 1
            x = make_logits(shape, dtype, layouts[turn % len(layouts)])
            grad = make_logits((*shape[:2], height, width), dtype, layouts[(turn + 1) % len(layouts)])
            op.upsample_bilinear2d(x, height, width, turn % 2 == 0, 0.0, 0.0)
            op.upsample_bilinear2d_backward(grad, *shape[2:], turn % 2 == 0, 0.0, 0.0)
            op.upsample_cat(x, grad, False, turn % 2 == 0)
