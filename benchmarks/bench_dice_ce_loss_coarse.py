"""dice_ce_loss of coarse logits against interpolation and loss in PyTorch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.bench_dice_ce_loss import SMALL_TENSORS, by_comparison
from benchmarks.interleave import DIRECTIONS, Case, Contender
from segops.reference.dice_ce_loss import as_users_write_it, interpolated, leanest_eager
from tests.cases import coherent_labels, make_logits

OP = "dice_ce_loss_coarse"
CE = "dice_ce_loss_coarse, cross-entropy alone"


@dataclass(frozen=True)
class CoarseCase(Case):
    """Logits of `shape` and a target of `size`."""

    size: tuple[int, int] = (512, 512)

    def __str__(self) -> str:
        return super().__str__() + f"-to-{'x'.join(map(str, self.size))}" + "-ce" * (self.op == CE)


HEAD = CoarseCase(CE, (4, 19, 128, 128))
CITYSCAPES = CoarseCase(OP, (1, 19, 256, 512), torch.bfloat16, size=(1024, 2048))
CASES = (HEAD, CoarseCase(OP, (4, 19, 128, 128)), CITYSCAPES, CoarseCase(OP, (2, 21, 33, 33), size=(513, 513)))
GOALS = {(HEAD, "forward_backward"): {"eager": 9, "torch.compile": 9}}


def of_interpolated(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda logits, target: loss(interpolated(logits, target.shape[1:], False), target)


def contenders(case: CoarseCase, device: str) -> list[Contender]:
    ours = partial(segops.dice_ce_loss, dice_weight=0.0) if case.op == CE else segops.dice_ce_loss
    ways = {"": F.cross_entropy} if case.op == CE else {"": as_users_write_it, "leanest ": leanest_eager}
    compiled = {"compiled": F.cross_entropy if case.op == CE else as_users_write_it}
    if case.op == OP:
        compiled |= {"compiled leanest": leanest_eager, "compiled, fused one-hot": by_comparison}
    found = [Contender("segops", ours)]
    if device == "cuda":
        found.append(Contender("segops, Triton", partial(ours, backend="triton"), group="segops"))
    for layout in ("contiguous", "channels_last"):
        suffix = ", channels_last" * (layout == "channels_last")
        found += [Contender(f"{n}eager{suffix}", of_interpolated(f), layout, group="eager") for n, f in ways.items()]
    return found + [Contender(n, of_interpolated(f), compiled=True, group="torch.compile") for n, f in compiled.items()]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dice_ce_loss_coarse(case: CoarseCase, direction: str, race: Callable[..., None], bench_device: str) -> None:
    n, c = case.shape[:2]
    logits = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
    target = coherent_labels((n, *case.size), c).to(bench_device)
    trains = direction == "forward_backward"
    # The interpolated logits are in no memory: coarse ones, labels and the coarse gradient are all there is to move.
    forward, again = logits.nbytes + target.nbytes, 2 * logits.nbytes
    dice_weight = 0.0 if case.op == CE else 1.0
    race(
        case,
        direction,
        (logits, target),
        contenders(case, bench_device),
        reference=partial(segops.dice_ce_loss, dice_weight=dice_weight, backend="reference"),
        own=of_interpolated(F.cross_entropy if case.op == CE else as_users_write_it),
        floor_bytes=forward + again * trains,
        moved_bytes=forward + (again + target.nbytes) * trains,
        goals=GOALS.get((case, direction)) if bench_device == "cpu" else None,
        memory_goal=logits.nbytes + SMALL_TENSORS if trains else None,
    )
