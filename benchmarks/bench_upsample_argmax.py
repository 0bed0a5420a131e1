"""upsample_argmax against interpolation and argmax in PyTorch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.interleave import Case, Contender
from segops.reference.upsample_argmax import upsample_argmax as reference
from tests.cases import make_logits

OP, WITH_SCORE = "upsample_argmax", "upsample_argmax with score"
MAIN = (4, 19, 64, 64)
CITYSCAPES = (1, 19, 256, 512)
SMALL = (1, 3, 32, 32)
#: Outputs per input in each dimension.
SCALES = {MAIN: 8, CITYSCAPES: 4, SMALL: 2}
CASES = (
    Case(OP, MAIN),
    Case(OP, MAIN, torch.bfloat16),
    Case(OP, MAIN, layout="channels_last"),
    Case(OP, CITYSCAPES),
    Case(OP, SMALL),
    Case(WITH_SCORE, MAIN),
    Case(WITH_SCORE, CITYSCAPES),
)
#: By case and group of contenders. A small tensor is about the overhead of a call.
GOALS = {
    Case(OP, MAIN): {"eager": 35, "best existing": 8},
    Case(OP, CITYSCAPES): {"eager": 35, "best existing": 8},
    Case(WITH_SCORE, MAIN): {"eager": 35, "best existing": 8},
    Case(OP, SMALL): {"eager": 1, "best existing": 1},
}


def labels(size: tuple[int, int], logits: Tensor) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear").argmax(1)


def score(size: tuple[int, int], logits: Tensor) -> Tensor:
    """Labels and their probabilities, of which the probabilities are compared."""
    best, label = F.interpolate(logits, size, mode="bilinear").softmax(1).max(1)
    del label
    return best


def with_score(size: tuple[int, int], backend: str | None, logits: Tensor) -> Tensor:
    return segops.upsample_argmax(logits, size, return_score=True, backend=backend)[1]


def without_score(size: tuple[int, int], backend: str | None, logits: Tensor) -> Tensor:
    result = segops.upsample_argmax(logits, size, backend=backend)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_upsample_argmax(case: Case, race: Callable[..., None], bench_device: str) -> None:
    n, _, h, w = case.shape
    size = (h * SCALES[case.shape], w * SCALES[case.shape])
    logits = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
    ours, eager = (with_score, score) if case.op == WITH_SCORE else (without_score, labels)
    which = 1 if case.op == WITH_SCORE else 0
    theirs = partial(eager, size)
    moved = logits.nbytes + n * size[0] * size[1] * (5 if which else 1)
    race(
        case,
        "forward",
        (logits,),
        [
            Contender("segops", partial(ours, size, None)),
            *([Contender("segops, Triton", partial(ours, size, "triton"), group="segops")] * (bench_device == "cuda")),
            Contender("eager", theirs, "contiguous"),
            Contender("eager, channels_last", theirs, "channels_last", group="best existing"),
            Contender("compiled", theirs, compiled=True, group="best existing"),
            Contender("compiled, channels_last", theirs, "channels_last", compiled=True, group="best existing"),
        ],
        reference=lambda x: reference(x, *size, False, torch.int64)[which],
        own=lambda x: reference(x, *size, False, torch.int64)[which],
        floor_bytes=moved,
        moved_bytes=moved,
        goals=GOALS.get(case) if bench_device == "cpu" else None,
    )
