"""Calls of dilated_conv's Triton operators: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from segops.triton import dilated_conv as op
from tests.cases import make_logits

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("channels", "columns", "height")


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for dtype, fast in ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)):
        shown = str(dtype).removeprefix("torch.") + (" as TF32" if fast else "")
        yield from _calls(shown, dtype, fast, 64, 1, torch.channels_last)
    yield from _calls("bfloat16, planar", torch.bfloat16, False, 64, 1, torch.contiguous_format)
    yield from _calls("bfloat16, depthwise", torch.bfloat16, False, 64, 64, torch.channels_last)
    yield from _calls("float64", torch.float64, False, 64, 1, torch.channels_last)


def _calls(
    shown: str, dtype: torch.dtype, fast: bool, channels: int, groups: int, memory_format: torch.memory_format
) -> Iterator[tuple[str, Callable[[], object]]]:
    x = torch.zeros(1, channels, 32, 32, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.zeros(channels, channels // groups, 3, 3, dtype=dtype)
    vector = torch.zeros(channels, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    window = [1, 1, 2, 2, 2, 2]
    epilogue = (vector, vector, vector, x, None)
    yield shown, functools.partial(op.dilated_conv2d, x, weight, *epilogue, window, groups, 1, fast)
    yield (
        f"grad_input, {shown}",
        functools.partial(op.dilated_conv2d_grad_input, x, weight, 32, 32, window, groups, fast),
    )
    yield f"grad_weight, {shown}", functools.partial(op.dilated_conv2d_grad_weight, x, x, weight, window, groups, fast)


def fenced() -> None:
    for shape, channels, groups, kernel, window, layout, dtype in (
        ((2, 5, 7, 9), 19, 1, (3, 2), [2, 1, 1, 0, 1, 3], "contiguous", torch.float32),
        ((1, 20, 6, 5), 18, 2, (1, 1), [1, 1, 0, 0, 1, 1], "channels_last_channel_slice", torch.bfloat16),
        ((1, 3, 5, 7), 6, 3, (3, 3), [1, 2, 1, 2, 1, 2], "channels_last", torch.bfloat16),
        ((1, 4, 1, 6), 4, 1, (1, 3), [1, 1, 0, 1, 1, 1], "expanded", torch.float64),
    ):
        x = make_logits(shape, dtype, layout)
        weight = torch.ones(channels, shape[1] // groups, *kernel, dtype=dtype)
        vector = torch.ones(channels, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        output: Tensor = op.dilated_conv2d(x, weight, vector, None, vector, None, vector, window, groups, 5, False)
        op.dilated_conv2d(x, weight, None, vector, None, output, None, window, groups, 3, False)
        op.dilated_conv2d_grad_input(output, weight, *shape[2:], window, groups, False)
        op.dilated_conv2d_grad_weight(x, output, weight, window, groups, False)
