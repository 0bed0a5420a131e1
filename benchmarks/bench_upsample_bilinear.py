"""upsample_bilinear2d and upsample_cat against PyTorch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.interleave import DIRECTIONS, Case, Contender
from tests.cases import make_logits

OP, BACKWARD, CAT = "upsample_bilinear2d", "upsample_bilinear2d backward", "upsample_cat"
X2, X8, SMALL = (4, 64, 128, 128), (4, 19, 64, 64), (1, 3, 32, 32)
#: Outputs per input in each dimension.
SCALES = {X2: 2, X8: 8, SMALL: 2}
VARIANTS = (
    (X2, torch.float32, "contiguous"),
    (X2, torch.bfloat16, "contiguous"),
    (X2, torch.float32, "channels_last"),
    (X8, torch.float32, "contiguous"),
    (X8, torch.bfloat16, "contiguous"),
    (X8, torch.float32, "channels_last"),
    (SMALL, torch.float32, "contiguous"),
)
CASES = tuple(Case(op, *variant) for op in (OP, BACKWARD) for variant in VARIANTS)
CATS = tuple(Case(CAT, X2, layout=layout) for layout in ("contiguous", "channels_last"))
#: By case and group of contenders. A small tensor is about the overhead of a call.
GOALS = {
    Case(OP, X2): {"eager": 3.5, "eager, channels_last": 1.0},
    Case(OP, X8): {"eager": 4.5, "eager, channels_last": 2.0},
    Case(BACKWARD, X2): {"eager": 8.0, "eager, channels_last": 1.5},
    Case(BACKWARD, X8): {"eager": 8.0, "eager, channels_last": 2.0},
    Case(OP, SMALL): {"eager": 1.0},
    Case(BACKWARD, SMALL): {"eager": 1.0},
}


def contenders(
    ours: Callable[..., Tensor], triton: Callable[..., Tensor], eager: Callable[..., Tensor], device: str
) -> list[Contender]:
    return [
        Contender("segops", ours),
        *([Contender("segops, Triton", triton, group="segops")] * (device == "cuda")),
        Contender("eager", eager, "contiguous"),
        Contender("eager, channels_last", eager, "channels_last"),
        Contender("compiled", eager, compiled=True),
        Contender("compiled, channels_last", eager, "channels_last", compiled=True, group="compiled"),
    ]


def upsample_backward(ops: Any, grad: Tensor, size: tuple[int, int], input_size: tuple[int, ...]) -> Tensor:
    if ops is torch.ops.aten:
        return ops.upsample_bilinear2d_backward(grad, size, input_size, False)
    return ops.upsample_bilinear2d_backward(grad, *input_size[2:], False, 0.0, 0.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_upsample_bilinear2d(case: Case, race: Callable[..., None], bench_device: str) -> None:
    n, c, h, w = case.shape
    scale = SCALES[case.shape]
    small, large = (h, w), (h * scale, w * scale)
    x = make_logits((n, c, *(large if case.op == BACKWARD else small)), case.dtype, case.layout, device=bench_device)
    if case.op == BACKWARD:
        # The derivative alone, from the gradient of the output: both sides without autograd's graph.
        eager, ours, triton = (
            partial(upsample_backward, operator, size=large, input_size=(n, c, *small))
            for operator in (torch.ops.aten, torch.ops.segops, torch.ops.segops_triton)
        )
    else:
        eager = partial(F.interpolate, size=large, mode="bilinear")
        ours = partial(segops.upsample_bilinear2d, size=large)
        triton = partial(ours, backend="triton")
    moved = n * c * (h * w + large[0] * large[1]) * x.element_size()
    race(
        case,
        "forward",
        (x,),
        contenders(ours, triton, eager, bench_device),
        reference=eager,
        own=eager,
        floor_bytes=moved,
        moved_bytes=moved,
        goals=GOALS.get(case) if bench_device == "cpu" else None,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CATS, ids=str)
def test_upsample_cat(case: Case, direction: str, race: Callable[..., None], bench_device: str) -> None:
    n, c, h, w = case.shape
    x = make_logits(case.shape, case.dtype, case.layout, device=bench_device)
    skip = make_logits((n, c // 2, 2 * h, 2 * w), case.dtype, case.layout, seed=2, device=bench_device)

    def eager(x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="bilinear")], 1)

    # The gradient of the skip connection is a slice of the result's: nothing to move.
    forward, backward = 5 * x.nbytes + 2 * skip.nbytes, 5 * x.nbytes
    moved = forward + backward * (direction == "forward_backward")
    race(
        case,
        direction,
        (x, skip),
        contenders(segops.upsample_cat, partial(segops.upsample_cat, backend="triton"), eager, bench_device),
        reference=eager,
        own=eager,
        floor_bytes=moved,
        moved_bytes=moved,
    )
