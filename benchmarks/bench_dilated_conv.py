"""dilated_conv2d against PyTorch, eager and compiled: with batch norm and ReLU, and the gradient of the input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.interleave import Case, Contender
from tests.cases import make_logits

BLOCK, FAST, GRAD_INPUT, PLAIN = "conv + norm + relu", "conv + norm + relu, fast", "conv, grad_input", "conv"
GOAL_SHAPES = ((2, 64, 128, 128), (1, 256, 64, 64), (1, 512, 60, 80), (1, 32, 256, 256))
#: The dilation of each; ASPP's branches are the last.
DILATIONS = {(2, 64, 128, 128): 2, (1, 256, 64, 64): 4, (1, 512, 60, 80): 2, (1, 32, 256, 256): 2, (1, 256, 33, 33): 12}
#: None of 16-bit types: there a CPU rounds once before the epilogue and once after it, as PyTorch does, and the harness
#: holds results to one rounding.
CASES = (
    *(Case(op, shape) for op in (BLOCK, FAST, GRAD_INPUT) for shape in GOAL_SHAPES),
    Case(BLOCK, GOAL_SHAPES[0], layout="channels_last"),
    Case(PLAIN, (1, 256, 33, 33)),
    Case(PLAIN, GOAL_SHAPES[0]),
)
LIMITS = {BLOCK: (1.4, 1.5, 1.8, 1.2), FAST: (2.0, 2.3, 2.7, 1.6), GRAD_INPUT: (1.3, 1.3, 1.3, 1.3)}
PEERS = {BLOCK: (1.2, 1.3, 1.5, 1.0), FAST: (1.6, 1.8, 2.2, 1.2)}


def goals(case: Case) -> dict[str, float] | None:
    if case.op not in LIMITS or case.layout != "contiguous" or case.dtype != torch.float32:
        return None
    at = GOAL_SHAPES.index(case.shape)
    peers = {"eager, channels_last": PEERS[case.op][at]} if case.op in PEERS else {}
    return {"eager": LIMITS[case.op][at], **peers}


def functions(case: Case, device: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The operator and PyTorch's way, both of one image; weights and statistics are made here."""
    channels, d = case.shape[1], DILATIONS[case.shape]
    weight = make_logits((channels, channels, 3, 3), case.dtype, scale=(9 * channels) ** -0.5, seed=1, device=device)
    mean, variance, gain, offset = (
        make_logits((channels,), seed=seed, scale=1.0, device=device).square() + 0.1 for seed in range(2, 6)
    )

    def cast(t: Tensor, like: Tensor) -> Tensor:
        return t.to(like.dtype)

    if case.op == GRAD_INPUT:
        window = [1, 1, d, d, d, d]

        def theirs(grad: Tensor) -> Tensor:
            options = ([1, 1], [d, d], [d, d], False, [0, 0], 1, [True, False, False])
            return torch.ops.aten.convolution_backward(grad, grad, cast(weight, grad), None, *options)[0]

        return lambda g: torch.ops.segops.dilated_conv2d_grad_input(g, weight, *g.shape[2:], window, 1, False), theirs
    if case.op == PLAIN:
        return (
            lambda x: segops.dilated_conv2d(x, weight, None, 1, d, d),
            lambda x: F.conv2d(x, cast(weight, x), None, 1, d, d),
        )
    scale = gain * torch.rsqrt(variance + 1e-5)
    epilogue: dict[str, Any] = {"scale": scale, "shift": offset - mean * scale, "activation": "relu"}
    epilogue["precision"] = "fast" if case.op == FAST else "default"

    def block(x: Tensor) -> Tensor:
        y = F.conv2d(x, cast(weight, x), None, 1, d, d)
        return F.relu(F.batch_norm(y, *(cast(t, x) for t in (mean, variance, gain, offset))))

    return lambda x: segops.dilated_conv2d(x, weight, None, 1, d, d, **epilogue), block


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_dilated_conv2d(case: Case, race: Callable[..., None], bench_device: str) -> None:
    x = make_logits(case.shape, case.dtype, case.layout, scale=1.0, device=bench_device)
    ours, theirs = functions(case, bench_device)
    # A looser bound than the tolerance rule's: the rule's own yardstick is compared in the tests.
    own = theirs if case.op != FAST else partial(_rounded, theirs)
    moved = 2 * x.nbytes + 9 * case.shape[1] ** 2 * x.element_size()
    race(
        case,
        "forward",
        (x,),
        [
            Contender("segops", ours),
            Contender("eager", theirs, "contiguous"),
            Contender("eager, channels_last", theirs, "channels_last"),
            Contender("compiled", theirs, compiled=True),
        ],
        reference=theirs,
        own=own,
        floor_bytes=moved,
        moved_bytes=moved,
        goals=goals(case) if bench_device == "cpu" else None,
    )


def _rounded(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    """What an input rounded to TF32's 11 bits gives: what precision="fast" may be off by."""
    step = x.abs().amax() * 2.0**-11
    return function((x / step).round() * step)
