"""Calls of confusion_matrix's Triton operator: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from segops.triton import confusion_matrix as op
from tests.cases import make_logits, random_labels

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("pixels", "classes")

#: What is compiled: dtype of the prediction, dtype of the target, layout, classes.
CASES = (
    ("float32", "int64", "planar", 19),
    ("bfloat16", "uint8", "channels_last", 19),
    ("float64", "int64", "planar", 19),
    ("float32", "int64", "planar", 150),
    ("int64", "int64", "map", 19),
    ("uint8", "uint8", "map", 150),
)


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for dtype, labels, layout, classes in CASES:
        target = torch.zeros(1, 64, 64, dtype=getattr(torch, labels))
        shape = (1, 64, 64) if layout == "map" else (1, classes, 64, 64)
        prediction = torch.zeros(shape, dtype=getattr(torch, dtype))
        if layout == "channels_last":
            prediction = prediction.to(memory_format=torch.channels_last)
        call = functools.partial(op.confusion_matrix, prediction, target, classes, True, 255, 0)
        yield f"{dtype}, {labels}, {layout}, {classes}", call


def fenced() -> None:
    layouts = ("contiguous", "channels_last", "channels_last_channel_slice", "batch_slice")
    dtypes = ((torch.float32, torch.uint8), (torch.bfloat16, torch.int32), (torch.float64, torch.int64))
    turn = 0
    for shape in ((2, 5, 7, 11), (1, 3, 1, 1), (1, 40, 9, 30)):
        for dtype, labels in dtypes:
            turn += 1
            target = random_labels((shape[0], *shape[2:]), shape[1], labels, 255 if turn % 2 else None)
            ignore = (turn % 2 == 1, 255, 0)
            op.confusion_matrix(make_logits(shape, dtype, layouts[turn % 4]), target, shape[1], *ignore)
            op.confusion_matrix(random_labels(target.shape, shape[1], labels, seed=3), target, shape[1], *ignore)
