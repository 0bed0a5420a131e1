"""dice_ce_loss against PyTorch, torch.compile, MONAI and segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.interleave import DIRECTIONS, Case, Contender, Peer
from segops.reference.dice_ce_loss import as_users_write_it, leanest_eager
from tests.cases import coherent_labels, make_logits

OP = "dice_ce_loss"
MAIN = Case(OP, (4, 19, 512, 512))
SMALL = Case(OP, (1, 3, 32, 32))
CASES = (
    MAIN,
    Case(OP, (4, 19, 512, 512), torch.bfloat16),
    Case(OP, (4, 19, 512, 512), layout="channels_last"),
    Case(OP, (2, 21, 513, 513)),
    SMALL,
)
#: By case, direction and group of contenders. A small tensor is about the overhead of a call.
GOALS = {
    (MAIN, "forward"): {"eager": 18, "leanest eager": 7, "torch.compile": 4, "MONAI": 8},
    (MAIN, "forward_backward"): {"eager": 15, "torch.compile": 5, "MONAI": 7, "cross-entropy alone": 3},
    (SMALL, "forward"): {"eager": 1, "leanest eager": 1},
    (SMALL, "forward_backward"): {"eager": 1, "leanest eager": 1},
}
#: The memory goal is the gradient, one float32 per pixel, and this for sums of [N, C] and the scalars of autograd.
SMALL_TENSORS = 64 << 10


def by_comparison(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """The users' loss as a compiler likes it: a one-hot by comparison fuses into the reductions, F.one_hot does not."""
    pixels = tuple(range(2, logits.ndim))
    prob = logits.log_softmax(1).exp()
    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * len(pixels))
    onehot = (target[:, None] == classes).to(logits.dtype)
    score = (2 * (prob * onehot).sum(pixels) + smooth) / (prob.sum(pixels) + onehot.sum(pixels) + smooth)
    return F.cross_entropy(logits, target) + 1 - score.mean()


def monai() -> Callable[..., Tensor]:
    from monai.losses import DiceCELoss

    loss = DiceCELoss(softmax=True, to_onehot_y=True, smooth_nr=1e-5, smooth_dr=1e-5)
    return lambda logits, target: loss(logits, target[:, None])


def smp() -> Callable[..., Tensor]:
    from segmentation_models_pytorch.losses import DiceLoss

    dice = DiceLoss("multiclass", smooth=1e-5)
    return lambda logits, target: dice(logits, target) + F.cross_entropy(logits, target)


def contenders(device: str) -> list[Contender]:
    reference = partial(segops.dice_ce_loss, backend="reference")
    triton = Contender("segops, Triton", partial(segops.dice_ce_loss, backend="triton"), group="segops")
    return [
        Contender("segops", segops.dice_ce_loss),
        *([triton] if device == "cuda" else []),
        Contender("eager", as_users_write_it, "contiguous"),
        Contender("eager, channels_last", as_users_write_it, "channels_last"),
        Contender("leanest eager", leanest_eager, "contiguous"),
        Contender("leanest eager, channels_last", leanest_eager, "channels_last"),
        Contender("compiled", as_users_write_it, compiled=True, group="torch.compile"),
        Contender("compiled leanest", leanest_eager, compiled=True, group="torch.compile"),
        Contender("compiled, fused one-hot", by_comparison, compiled=True, group="torch.compile"),
        Peer("MONAI", monai),
        Peer("MONAI compiled", monai, compiled=True),
        # Its Dice term adds up the batch first.
        Peer("smp", smp, reference=partial(reference, batch_dice=True)),
        Contender("cross-entropy alone", F.cross_entropy, reference=partial(reference, dice_weight=0.0)),
    ]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dice_ce_loss(case: Case, direction: str, race: Callable[..., None], bench_device: str) -> None:
    n, c, *spatial = case.shape
    logits = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
    target = coherent_labels((n, *spatial), c).to(bench_device)
    # Backward reads logits and target again and writes the gradient.
    forward, again = logits.nbytes + target.nbytes, 2 * logits.nbytes
    trains = direction == "forward_backward"
    race(
        case,
        direction,
        (logits, target),
        contenders(bench_device),
        reference=partial(segops.dice_ce_loss, backend="reference"),
        own=as_users_write_it,
        floor_bytes=forward + again * trains,
        moved_bytes=forward + (again + target.nbytes) * trains,
        goals=GOALS.get((case, direction)) if bench_device == "cpu" else None,
        memory_goal=logits.nbytes + 4 * target.numel() + SMALL_TENSORS if trains else None,
    )
