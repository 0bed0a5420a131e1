"""confusion_matrix against argmax and bincount in PyTorch, eager and compiled; from logits and from label maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import segops
from benchmarks.interleave import Case, Contender
from segops.reference import confusion_matrix as reference
from tests.cases import coherent_labels, make_logits

OP, MAPS = "confusion_matrix", "confusion_matrix of label maps"
MAIN = (4, 19, 512, 512)
CITYSCAPES = (1, 19, 1024, 2048)
SMALL = (1, 3, 32, 32)
CASES = (
    Case(OP, MAIN),
    Case(OP, MAIN, torch.bfloat16),
    Case(OP, MAIN, layout="channels_last"),
    Case(OP, CITYSCAPES),
    Case(OP, SMALL),
    Case(MAPS, MAIN, torch.int64),
    Case(MAPS, MAIN, torch.uint8),
    Case(MAPS, CITYSCAPES, torch.int64),
)
#: By case and group of contenders. A small tensor is about the overhead of a call.
GOALS = {
    Case(OP, MAIN): {"eager": 18, "eager, channels_last": 4},
    Case(OP, MAIN, layout="channels_last"): {"eager": 18, "eager, channels_last": 4},
    Case(OP, SMALL): {"eager": 1},
    # Two maps of int64 are 16 bytes a pixel: what bincount needs is not far from what it takes to read them.
    Case(MAPS, MAIN, torch.int64): {"eager": 5},
    Case(MAPS, MAIN, torch.uint8): {"eager": 5},
}


def of_logits(target: Tensor, logits: Tensor) -> Tensor:
    return of_maps(target, logits.shape[1], logits.argmax(1))


def of_maps(target: Tensor, classes: int, prediction: Tensor) -> Tensor:
    cell = target.long() * classes + prediction
    return torch.bincount(cell.flatten(), minlength=classes * classes).view(classes, classes)


def predicted(target: Tensor, classes: int) -> Tensor:
    """A prediction that is right but along the borders of regions, as good ones are."""
    return target.roll((1, -2), (1, 2)).clamp(max=classes - 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_confusion_matrix(case: Case, race: Callable[..., None], bench_device: str) -> None:
    n, classes, h, w = case.shape
    of_map = case.op == MAPS
    target = coherent_labels((n, h, w), classes, dtype=case.dtype if of_map else torch.int64).to(bench_device)
    if of_map:
        prediction, layouts = predicted(target, classes), (None,)
        theirs = partial(of_maps, target, classes)
    else:
        prediction = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
        layouts, theirs = ("contiguous", "channels_last"), partial(of_logits, target)

    def ours(backend: str | None, x: Tensor) -> Tensor:
        return segops.confusion_matrix(x, target, classes, backend=backend)

    def expected(x: Tensor) -> Tensor:
        return reference.confusion_matrix(reference.classes_of(x), target.long(), classes, None)

    moved = prediction.nbytes + target.nbytes
    race(
        case,
        "forward",
        (prediction,),
        [
            Contender("segops", partial(ours, None)),
            *([Contender("segops, Triton", partial(ours, "triton"), group="segops")] * (bench_device == "cuda")),
            *(
                Contender(f"eager{', channels_last' if layout == 'channels_last' else ''}", theirs, layout)
                for layout in layouts
            ),
            Contender("compiled", theirs, layouts[0], compiled=True),
        ],
        reference=expected,
        own=expected,
        floor_bytes=moved,
        moved_bytes=moved,
        goals=GOALS.get(case) if bench_device == "cpu" else None,
    )
