"""Calls of dice_bce_loss's Triton operators: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from segops.triton import dice_bce_loss as op
from tests.cases import make_logits

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("pixels", "channels", "coarse_height")

#: What is compiled: dtypes of logits and target, channels, layout, focal_gamma.
CASES = (
    ("float32", "uint8", 1, "contiguous", 0.0),
    ("bfloat16", "uint8", 1, "contiguous", 0.0),
    ("bfloat16", "bfloat16", 20, "contiguous", 2.0),
    ("float32", "uint8", 16, "channels_last", 0.0),
    ("bfloat16", "uint8", 64, "channels_last", 2.0),
    ("float64", "float64", 3, "contiguous", 2.0),
)
#: The same of coarse logits.
COARSE_CASES = (
    ("float32", "uint8", 1, "contiguous", 0.0),
    ("bfloat16", "uint8", 20, "contiguous", 2.0),
    ("bfloat16", "bfloat16", 16, "channels_last", 0.0),
)


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


def both_ways(logits: torch.Tensor, target: torch.Tensor, *options: Any, align: tuple[bool, ...] = ()) -> None:
    """Forward and backward; options: weights, ignore_index, focal_gamma, squared, and whether to make the map."""
    *shared, with_map = options
    overlap, bce, *_ = op.statistics(logits, target, *shared, True, with_map, 0, *align)
    op.backward(logits, target, *shared[:2], overlap, bce, *shared[2:], *align)


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for prefix, size, cases in (("", 64, CASES), ("coarse, ", 256, COARSE_CASES)):
        for dtype, label, channels, layout, gamma in cases:
            logits = in_layout(torch.zeros(2, channels, 64, 64, dtype=getattr(torch, dtype)), layout)
            target = torch.zeros(2, channels, size, size, dtype=getattr(torch, label))
            if not prefix:
                target = in_layout(target, layout)
            align = (False,) if prefix else ()
            call = functools.partial(both_ways, logits, target, None, None, 255, gamma, gamma != 0, False, align=align)
            yield f"{prefix}{dtype}, {label}, {channels} channels, {layout}, gamma {gamma:g}", call


def fenced() -> None:
    generator = torch.Generator().manual_seed(1)

    def labels(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        soft = torch.rand(shape, generator=generator)
        target = (soft if dtype.is_floating_point else soft.mul(2)).to(dtype)
        target.view(-1)[-1] = 7  # a bad label, in the last place
        return target

    dtypes = ((torch.float32, torch.uint8), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64))
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "expanded")
    turn = 0
    for shape in ((2, 5, 7, 11), (2, 1, 1), (1, 70, 13), (2, 3, 1100)):
        for dtype, label in dtypes:
            turn += 1
            accumulate = torch.promote_types(dtype, torch.float32)
            weights = (
                torch.rand(shape[1], dtype=torch.float64),
                torch.rand(shape[0], shape[1] if turn % 2 else 1, *shape[2:], dtype=accumulate),
            )
            logits = make_logits(shape, dtype, layouts[turn % len(layouts)])
            both_ways(logits, labels(shape, label), *weights, 255, 2.0 * (turn % 2), turn % 3 == 0, True)
    for (c, h, w), size in (((5, 3, 4), (7, 11)), ((19, 2, 3), (5, 13)), ((1, 1, 1), (2, 9))):
        for turn, (dtype, label) in enumerate(dtypes):
            accumulate = torch.promote_types(dtype, torch.float32)
            weights = (torch.rand(c, dtype=torch.float64), torch.rand(2, c, *size, dtype=accumulate))
            logits = make_logits((2, c, h, w), dtype, layouts[turn])
            target = labels((2, c, *size), label)
            both_ways(logits, target, *weights, 255, 0.5 * turn, turn == 2, True, align=(turn == 1,))
