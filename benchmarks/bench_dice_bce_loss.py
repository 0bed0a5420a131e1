"""dice_bce_loss against PyTorch and torch.compile, at the target's size and of coarse logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.bench_dice_ce_loss import SMALL_TENSORS
from benchmarks.interleave import DIRECTIONS, Case, Contender
from segops.reference.dice_bce_loss import as_users_write_it
from segops.reference.dice_ce_loss import interpolated
from tests.cases import coherent_labels, make_logits

OP = "dice_bce_loss"


@dataclass(frozen=True)
class BinaryCase(Case):
    """Logits of `shape`, and a target that has `times` as many rows and columns."""

    times: int = 1

    def __str__(self) -> str:
        return super().__str__() + f"-x{self.times}" * (self.times > 1)


BINARY = BinaryCase(OP, (8, 1, 512, 512))
MULTILABEL = BinaryCase(OP, (4, 14, 256, 256))
CHANNELS_LAST = BinaryCase(OP, (4, 14, 256, 256), layout="channels_last")
COARSE = BinaryCase(OP, (8, 1, 128, 128), times=4)
CASES = (BINARY, MULTILABEL, CHANNELS_LAST, COARSE, BinaryCase(OP, (4, 14, 64, 64), times=4))
GOALS = {
    (BINARY, "forward_backward"): {"eager": 8, "torch.compile": 3},
    (MULTILABEL, "forward_backward"): {"eager": 8, "torch.compile": 3},
    (COARSE, "forward_backward"): {"eager": 8},
}


def users(logits: Tensor, target: Tensor) -> Tensor:
    """What training scripts do with a target of labels: cast it, and interpolate the logits to its size."""
    if logits.shape != target.shape:
        logits = interpolated(logits, target.shape[2:], False)
    return as_users_write_it(logits, target.to(logits.dtype))


def cross_entropy_alone(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def contenders(case: BinaryCase, device: str) -> list[Contender]:
    reference = partial(segops.dice_bce_loss, backend="reference", dice_weight=0.0)
    triton = Contender("segops, Triton", partial(segops.dice_bce_loss, backend="triton"), group="segops")
    alone = Contender("cross-entropy alone", cross_entropy_alone, reference=reference)
    return [
        Contender("segops", segops.dice_bce_loss),
        *([triton] if device == "cuda" else []),
        Contender("eager", users, "contiguous"),
        *([Contender("eager, channels_last", users, "channels_last")] if case.shape[1] > 1 else []),
        Contender("compiled", users, compiled=True, group="torch.compile"),
        *([alone] if case.times == 1 else []),
    ]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dice_bce_loss(case: BinaryCase, direction: str, race: Callable[..., None], bench_device: str) -> None:
    n, c, h, w = case.shape
    logits = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
    size = (h * case.times, w * case.times)
    target = coherent_labels((n * c, *size), 2).view(n, c, *size).byte().to(bench_device)
    trains = direction == "forward_backward"
    forward, again = logits.nbytes + target.nbytes, 2 * logits.nbytes
    race(
        case,
        direction,
        (logits, target),
        contenders(case, bench_device),
        reference=partial(segops.dice_bce_loss, backend="reference"),
        own=users,
        floor_bytes=forward + again * trains,
        moved_bytes=forward + (again + target.nbytes) * trains,
        goals=GOALS.get((case, direction)) if bench_device == "cpu" else None,
        memory_goal=logits.nbytes + SMALL_TENSORS if trains else None,
    )
