"""Calls of dice_ce_loss's Triton operators: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from segops.triton import dice_ce_loss as op
from tests.cases import make_logits, random_labels
from tests.triton.direct import loss

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("pixels", "classes", "coarse_height")

#: What is compiled: logits dtype, label dtype, classes, layout.
CASES = (
    ("float32", "int64", 19, "planar"),
    ("bfloat16", "uint8", 19, "planar"),
    ("bfloat16", "uint8", 64, "planar"),
    ("float32", "int64", 150, "planar"),
    ("bfloat16", "uint8", 150, "planar"),
    ("float32", "int64", 19, "channels_last"),
    ("bfloat16", "uint8", 32, "channels_last"),
)
#: The same of coarse logits.
COARSE_CASES = (
    ("float32", "int64", 19, "planar"),
    ("bfloat16", "uint8", 19, "planar"),
    ("bfloat16", "uint8", 150, "planar"),
    ("float32", "int64", 19, "channels_last"),
)


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    ce = torch.zeros(2, dtype=torch.float64)

    def both(logits: torch.Tensor, target: torch.Tensor) -> None:
        sums, sums_ce, *_ = op.statistics(logits, target, None, None, -100, 0.0, False, True, False, False, 0)
        op.backward(logits, target, None, None, sums, sums_ce, -100, 0.0, False)

    for dtype, label, classes, layout in CASES:
        logits = torch.zeros(1, classes, 64, 64, dtype=getattr(torch, dtype))
        if layout == "channels_last":
            logits = logits.to(memory_format=torch.channels_last)
        target = torch.zeros(1, 64, 64, dtype=getattr(torch, label))
        yield f"{dtype}, {label}, {classes} classes, {layout}", functools.partial(both, logits, target)

    def coarse(logits: torch.Tensor, target: torch.Tensor) -> None:
        sums, sums_ce, *_ = op.statistics(logits, target, None, None, -100, 0.0, False, True, False, False, 0, False)
        op.coarse_backward(logits, target, None, None, sums, sums_ce, -100, 0.0, False, False)

    for dtype, label, classes, layout in COARSE_CASES:
        logits = torch.zeros(1, classes, 32, 32, dtype=getattr(torch, dtype))
        if layout == "channels_last":
            logits = logits.to(memory_format=torch.channels_last)
        target = torch.zeros(1, 128, 128, dtype=getattr(torch, label))
        yield f"coarse, {dtype}, {label}, {classes} classes, {layout}", functools.partial(coarse, logits, target)
    numbers = (2.0, 0.0, 1.0, 1.0, 1e-5, 1.0, 1.0, False, True, False, True)
    yield "19 classes", functools.partial(op.value, torch.zeros(1, 3, 19).double(), ce, None, *numbers)


def fenced() -> None:
    dtypes = ((torch.float32, torch.int64), (torch.bfloat16, torch.uint8), (torch.float64, torch.int16))
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "expanded")
    turn = 0
    for classes, spatial in ((5, (7, 11)), (3, (1,)), (19, (1100,)), (66, (5, 13))):
        for dtype, labels in dtypes:
            weights = {"weight": torch.rand(classes), "pixel_weight": torch.rand(2, *spatial)}
            for options in ({}, {"label_smoothing": 0.1, "dice_class_weight": torch.rand(classes), **weights}):
                turn += 1
                logits = make_logits((2, classes, *spatial), dtype, layouts[turn % len(layouts)])
                target = random_labels((2, *spatial), classes, labels, ignore_index=100)
                target.view(2, -1)[-1, -1] = 99  # a bad label, in the last place
                loss(logits.requires_grad_(), target, ignore_index=100, **options).backward()
            op.statistics(logits.detach(), target, None, None, 100, 0.0, True, True, True, True, 0)
    for classes, (h, w), size in ((5, (3, 4), (7, 11)), (66, (2, 3), (5, 13)), (3, (1, 1), (2, 9))):
        for turn, (dtype, labels) in enumerate(dtypes):
            logits = make_logits((2, classes, h, w), dtype, layouts[turn])
            target = random_labels((2, *size), classes, labels, ignore_index=100)
            weights = (
                torch.rand(classes).double(),
                torch.rand(2, *size, dtype=torch.promote_types(dtype, torch.float32)),
            )
            shared, align = (100, 0.1, turn == 2), turn == 1
            sums, ce, *_ = op.statistics(logits, target, *weights, *shared, True, True, True, 0, align)
            op.coarse_backward(logits, target, *weights, sums, ce, *shared, align)
