"""max_pool2d with indices, max_unpool2d and their gradients against PyTorch and torch.compile.

Gradients are timed alone, as the operators that autograd calls. The peak memory of max_pool2d tells the indices apart:
a byte for each window where PyTorch takes eight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from benchmarks.interleave import Case, Contender
from tests.cases import make_logits

POOL, POOL_3X3 = "max_pool2d, 2x2", "max_pool2d, 3x3 stride 2"
POOL_BACKWARD, POOL_3X3_BACKWARD = "max_pool2d, 2x2, backward", "max_pool2d, 3x3 stride 2, backward"
UNPOOL, UNPOOL_BACKWARD = "max_unpool2d, 2x2", "max_unpool2d, 2x2, backward"
UNPOOL_3X3 = "max_unpool2d, 3x3 stride 2"
FLAT, FLAT_BACKWARD = "max_unpool2d, int64 indices", "max_unpool2d, int64 indices, backward"
FLAT_3X3 = "max_unpool2d, int64 indices of 3x3 stride 2"
POOL_STRIDE_1, POOL_STRIDE_1_BACKWARD = "max_pool2d, 3x3 stride 1", "max_pool2d, 3x3 stride 1, backward"
POOL_13X13, POOL_13X13_BACKWARD = "max_pool2d, 13x13 stride 1", "max_pool2d, 13x13 stride 1, backward"
MAIN, ODD = (4, 64, 256, 256), (4, 64, 255, 253)
LAYOUTS = ("contiguous", "channels_last")
CASES = (
    *(Case(op, MAIN) for op in (POOL, POOL_BACKWARD, UNPOOL, UNPOOL_BACKWARD, POOL_3X3, POOL_3X3_BACKWARD, FLAT)),
    *(Case(op, MAIN, layout="channels_last") for op in (POOL, POOL_BACKWARD, UNPOOL, UNPOOL_BACKWARD, FLAT)),
    *(Case(op, MAIN, torch.bfloat16) for op in (POOL, UNPOOL)),
    *(Case(op, (2, 64, 129, 131)) for op in (POOL, UNPOOL, POOL_3X3)),
    *(Case(op, (1, 16, 16, 16)) for op in (POOL, UNPOOL)),
    *(Case(op, MAIN, layout="channels_last") for op in (POOL_3X3, POOL_3X3_BACKWARD)),
    *(
        Case(op, MAIN, torch.bfloat16, layout)
        for op in (POOL_3X3, POOL_3X3_BACKWARD, FLAT, FLAT_3X3)
        for layout in LAYOUTS
    ),
    *(Case(op, MAIN, layout=layout) for op in (UNPOOL_3X3, FLAT_3X3, FLAT_BACKWARD) for layout in LAYOUTS),
    *(Case(op, ODD, layout=layout) for op in (POOL, POOL_BACKWARD, UNPOOL, FLAT) for layout in LAYOUTS),
    *(
        Case(op, (2, 64, 128, 128), layout=layout)
        for op in (POOL_STRIDE_1, POOL_STRIDE_1_BACKWARD)
        for layout in LAYOUTS
    ),
    *(Case(op, (1, 64, 64, 64), layout=layout) for op in (POOL_13X13, POOL_13X13_BACKWARD) for layout in LAYOUTS),
)
POOLINGS = (POOL, POOL_3X3, POOL_STRIDE_1, POOL_13X13)
POOLING_BACKWARDS = (POOL_BACKWARD, POOL_3X3_BACKWARD, POOL_STRIDE_1_BACKWARD, POOL_13X13_BACKWARD)
GOALS = {
    CASES[0]: {"eager": 12, "eager, channels_last": 1.4},
    CASES[1]: {"eager": 3.5},
    CASES[2]: {"eager": 3.5},
    CASES[3]: {"eager": 2},
}
#: kernel, stride, padding
WINDOWS = {
    **dict.fromkeys((POOL_3X3, POOL_3X3_BACKWARD, UNPOOL_3X3, FLAT_3X3), (3, 2, 1)),
    **dict.fromkeys((POOL_STRIDE_1, POOL_STRIDE_1_BACKWARD), (3, 1, 1)),
    **dict.fromkeys((POOL_13X13, POOL_13X13_BACKWARD), (13, 1, 6)),
}


@dataclass(frozen=True)
class Ways:
    """How to compute a case from its one input, by layout of the indices."""

    input: Tensor
    ours: Callable[[Tensor], Tensor]
    eager: Callable[[str], Callable[[Tensor], Tensor]]
    reference: Callable[[Tensor], Tensor]
    moved_bytes: int


def in_layout(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def ways(case: Case, device: str) -> Ways:
    kernel, stride, padding = WINDOWS.get(case.op, (2, 2, 0))
    x = make_logits(case.shape, case.dtype, case.layout, device=device)
    height, width = x.shape[2:]
    pooled, local = segops.max_pool2d(x, kernel, stride, padding)
    _, torch_indices = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
    assert torch.equal(segops.local_to_flat_indices(local, (height, width), kernel, stride, padding), torch_indices)
    flat = {layout: in_layout(torch_indices, layout) for layout in ("contiguous", "channels_last")}
    window = [kernel, kernel, stride, stride, padding, padding, 1, 1]
    ops = torch.ops.segops
    gradient = torch.randn_like(pooled)

    def scattered(y: Tensor, scatter: Callable[..., Tensor] = Tensor.scatter) -> Tensor:
        zeros = torch.zeros(*y.shape[:2], height * width, dtype=y.dtype, device=device)
        return scatter(zeros, 2, torch_indices.flatten(2), y.flatten(2)).view(*y.shape[:2], height, width)

    def unpool(layout: str) -> Callable[[Tensor], Tensor]:
        return lambda y: torch.ops.aten.max_unpool2d(y, flat[layout], [height, width])

    def unpool_backward(layout: str) -> Callable[[Tensor], Tensor]:
        leaves: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

        def backward(g: Tensor) -> Tensor:
            if g.dtype not in leaves:
                leaf = in_layout(pooled, layout).to(g.dtype).requires_grad_()
                with torch.enable_grad():  # who races contenders forwards has switched it off
                    leaves[g.dtype] = leaf, unpool(layout)(leaf)
            leaf, output = leaves[g.dtype]
            return torch.autograd.grad(output, leaf, g, retain_graph=True)[0]

        return backward

    def pool_backward(layout: str) -> Callable[[Tensor], Tensor]:
        image = in_layout(x, layout)
        sizes = [kernel, kernel], [stride, stride], [padding, padding], [1, 1], False, flat[layout]
        return lambda g: torch.ops.aten.max_pool2d_with_indices_backward(g, image, *sizes)

    if case.op in POOLINGS:
        return Ways(
            x,
            lambda y: segops.max_pool2d(y, kernel, stride, padding)[0],
            lambda _: lambda y: F.max_pool2d(y, kernel, stride, padding, return_indices=True)[0],
            lambda y: F.max_pool2d(y, kernel, stride, padding),
            x.nbytes + pooled.nbytes + local.nbytes,
        )
    moved = x.nbytes + pooled.nbytes + local.nbytes
    if case.op in POOLING_BACKWARDS:
        ours = lambda g: ops.max_unpool2d(g, local, height, width, window, True, 0)[0]  # noqa: E731
        return Ways(gradient, ours, pool_backward, lambda g: scattered(g, Tensor.scatter_add), moved)
    indices = flat[case.layout]
    moved_flat = x.nbytes + pooled.nbytes + indices.nbytes
    if case.op in (UNPOOL_BACKWARD, FLAT_BACKWARD):

        def picked(g: Tensor) -> Tensor:
            return g.flatten(2).gather(2, torch_indices.flatten(2)).view(pooled.shape)

        from_local = case.op == UNPOOL_BACKWARD
        return Ways(
            torch.randn_like(x),
            (lambda g: ops.max_unpool2d_backward(g, local, window, False))
            if from_local
            else (lambda g: ops.max_unpool2d_flat_backward(g, indices)),
            unpool_backward,
            picked,
            moved if from_local else moved_flat,
        )
    from_local = case.op in (UNPOOL, UNPOOL_3X3)
    which = local if from_local else indices
    return Ways(
        pooled,
        lambda y: segops.max_unpool2d(y, which, kernel, stride, padding, output_size=(height, width)),
        unpool,
        scattered,
        moved if from_local else moved_flat,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_max_unpool(case: Case, race: Callable[..., None], bench_device: str) -> None:
    way = ways(case, bench_device)
    contenders = [
        Contender("segops", way.ours),
        Contender("eager", way.eager("contiguous"), "contiguous"),
        Contender("eager, channels_last", way.eager("channels_last"), "channels_last"),
    ]
    if case.op in POOLINGS:
        contenders.append(Contender("compiled", way.eager(case.layout), compiled=True, group="torch.compile"))
    race(
        case,
        "forward",
        (way.input,),
        contenders,
        reference=way.reference,
        own=way.reference,
        floor_bytes=way.moved_bytes,
        moved_bytes=way.moved_bytes,
        goals=GOALS.get(case) if bench_device == "cpu" else None,
    )
