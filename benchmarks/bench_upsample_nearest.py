"""upsample_nearest2d and bed_of_nails2d against PyTorch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.interleave import DIRECTIONS, Case, Contender
from segops.reference import upsample_nearest as reference
from tests.cases import make_logits

X2, X4, NAILS = "upsample_nearest2d, x2", "upsample_nearest2d, x4", "bed_of_nails2d, x2"
MAIN = (4, 64, 128, 128)
CASES = (
    Case(X2, MAIN),
    Case(X2, MAIN, torch.bfloat16),
    Case(X2, MAIN, layout="channels_last"),
    Case(X2, (2, 256, 16, 16)),
    Case(X4, (4, 19, 128, 128)),
    Case(NAILS, MAIN),
    Case(NAILS, MAIN, layout="channels_last"),
)
GOALS = {
    (CASES[0], "forward"): {"eager": 2},
    (CASES[0], "forward_backward"): {"eager": 2},
}


def scale_of(case: Case) -> int:
    return 4 if case.op == X4 else 2


def contenders(case: Case, device: str) -> list[Contender]:
    scale = scale_of(case)
    if case.op == NAILS:
        ours = partial(segops.bed_of_nails2d, scale=scale)
        eager: Callable[[Tensor], Tensor] = partial(reference.bed_of_nails2d, scale=scale)
    else:
        ours = partial(segops.upsample_nearest2d, scale_factor=scale)
        eager = partial(F.interpolate, scale_factor=scale, mode="nearest")
    return [
        Contender("segops", ours),
        *([Contender("segops, Triton", partial(ours, backend="triton"), group="segops")] if device == "cuda" else []),
        Contender("eager", eager, "contiguous"),
        Contender("eager, channels_last", eager, "channels_last"),
        Contender("compiled", eager, compiled=True, group="torch.compile"),
    ]


def truth(case: Case, x: Tensor) -> Tensor:
    scale = scale_of(case)
    if case.op == NAILS:
        return reference.bed_of_nails2d(x, scale)
    return reference.upsample_nearest2d(x, x.shape[2] * scale, x.shape[3] * scale, scale, scale)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_upsample_nearest(case: Case, direction: str, race: Callable[..., None], bench_device: str) -> None:
    x = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
    one_way = x.nbytes * (1 + scale_of(case) ** 2)
    moved = one_way * (2 if direction == "forward_backward" else 1)
    race(
        case,
        direction,
        (x,),
        contenders(case, bench_device),
        reference=partial(truth, case),
        own=partial(truth, case),
        floor_bytes=moved,
        moved_bytes=moved,
        goals=GOALS.get((case, direction)) if bench_device == "cpu" else None,
    )
