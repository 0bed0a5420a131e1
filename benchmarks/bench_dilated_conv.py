"""dilated_conv2d against PyTorch, eager and compiled: with batch norm and ReLU, its gradients, and two modules.

The modules are the atrous pyramid of Chen et al., "DeepLab" (2018), whose four branches read one image, and the context
module of Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions" (2016).
"""

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
from segops.ops.dilated_conv import prepack
from tests.cases import make_logits

BLOCK, FAST, PACKED = "conv + norm + relu", "conv + norm + relu, fast", "conv + norm + relu, fast, prepacked"
PLAIN, GRAD_INPUT, GRAD_WEIGHT = "conv", "conv, grad_input", "conv, grad_weight"
PYRAMID, CONTEXT = "atrous pyramid", "context module"
GOAL_SHAPES = ((2, 64, 128, 128), (1, 256, 64, 64), (1, 512, 60, 80), (1, 32, 256, 256))
DILATIONS = {(2, 64, 128, 128): 2, (1, 256, 64, 64): 4, (1, 512, 60, 80): 2, (1, 32, 256, 256): 2, (1, 256, 33, 33): 12}
CASES = (
    *(Case(op, shape) for op in (BLOCK, FAST, PACKED, GRAD_INPUT, GRAD_WEIGHT) for shape in GOAL_SHAPES),
    Case(BLOCK, GOAL_SHAPES[0], layout="channels_last"),
    Case(PLAIN, (1, 256, 33, 33)),
    Case(PLAIN, GOAL_SHAPES[0]),
    *(Case(op, shape, torch.bfloat16) for op in (BLOCK, FAST) for shape in GOAL_SHAPES[:2]),
)
LIMITS = {BLOCK: (1.4, 1.5, 1.8, 1.2), FAST: (2.0, 2.3, 2.7, 1.6), GRAD_INPUT: (1.3, 1.3, 1.3, 1.3)}
PEERS = {BLOCK: (1.2, 1.3, 1.5, 1.0), FAST: (1.6, 1.8, 2.2, 1.2)}

#: Of a module: its dilations, and its inputs' and outputs' channels; the context module has those of its input.
MODULES = {
    PYRAMID: ((6, 12, 18, 24), (1, 256, 65, 65), 64),
    CONTEXT: ((1, 1, 2, 4, 8, 16, 1), (1, 21, 64, 64), 21),
}
#: The gradients of input and weights come with "forward_backward". A ReLU would make them jump where rounding differs.
MODULE_CASES = tuple((op, direction) for op in MODULES for direction in ("forward", "forward_backward"))


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

    if case.op in (GRAD_INPUT, GRAD_WEIGHT):
        window = [1, 1, d, d, d, d]
        of_weight = case.op == GRAD_WEIGHT
        other = make_logits(case.shape, case.dtype, case.layout, scale=1.0, seed=7, device=device)

        def theirs(grad: Tensor) -> Tensor:
            options = ([1, 1], [d, d], [d, d], False, [0, 0], 1, [not of_weight, of_weight, False])
            input = cast(other, grad)
            return torch.ops.aten.convolution_backward(grad, input, cast(weight, grad), None, *options)[of_weight]

        ops = torch.ops.segops
        if of_weight:
            return lambda g: ops.dilated_conv2d_grad_weight(other, g, weight, window, 1, False), theirs
        return lambda g: ops.dilated_conv2d_grad_input(g, weight, *g.shape[2:], window, 1, False), theirs
    if case.op == PLAIN:
        return (
            lambda x: segops.dilated_conv2d(x, weight, None, 1, d, d),
            lambda x: F.conv2d(x, cast(weight, x), None, 1, d, d),
        )
    scale = gain * torch.rsqrt(variance + 1e-5)
    epilogue: dict[str, Any] = {"scale": scale, "shift": offset - mean * scale, "activation": "relu"}
    epilogue["precision"] = "default" if case.op == BLOCK else "fast"
    epilogue["prepacked"] = prepack(weight, "fast") if case.op == PACKED else None

    def block(x: Tensor) -> Tensor:
        y = F.conv2d(x, cast(weight, x), None, 1, d, d)
        return F.relu(F.batch_norm(y, *(cast(t, x) for t in (mean, variance, gain, offset))))

    return lambda x: segops.dilated_conv2d(x, weight, None, 1, d, d, **epilogue), block


def modules(op: str, direction: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The module by segops and by PyTorch, both of an image and the weights."""
    dilations = MODULES[op][0]
    activation = "relu" if direction == "forward" else None

    def ours(x: Tensor, weight: Tensor, d: int) -> Tensor:
        return segops.dilated_conv2d(x, weight, None, 1, d, d, activation=activation)

    def theirs(x: Tensor, weight: Tensor, d: int) -> Tensor:
        y = F.conv2d(x, weight, None, 1, d, d)
        return F.relu(y) if activation else y

    def module(layer: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, *weights: Tensor) -> Tensor:
        if op == PYRAMID:
            return torch.cat([layer(x, weight, d) for weight, d in zip(weights, dilations, strict=True)], 1)
        for weight, d in zip(weights, dilations, strict=True):
            x = layer(x, weight, d)
        return x

    return partial(module, ours), partial(module, theirs)


def contenders(ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> list[Contender]:
    return [
        Contender("segops", ours),
        Contender("eager", theirs, "contiguous"),
        Contender("eager, channels_last", theirs, "channels_last"),
        Contender("compiled", theirs, compiled=True),
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_dilated_conv2d(case: Case, race: Callable[..., None], bench_device: str) -> None:
    if case.op == PACKED and bench_device != "cpu":
        pytest.skip("weights are prepacked for a CPU")
    x = make_logits(case.shape, case.dtype, case.layout, scale=1.0, device=bench_device)
    ours, theirs = functions(case, bench_device)
    # A looser bound than the tolerance rule's: the rule's own yardstick is compared in the tests.
    own = partial(_rounded, theirs) if case.op in (FAST, PACKED) else theirs
    moved = 2 * x.nbytes + 9 * case.shape[1] ** 2 * x.element_size()
    race(
        case,
        "forward",
        (x,),
        contenders(ours, theirs),
        reference=theirs,
        own=own,
        floor_bytes=moved,
        moved_bytes=moved,
        products=9 * case.shape[1] * x.numel(),
        goals=goals(case) if bench_device == "cpu" else None,
    )


@pytest.mark.parametrize(("op", "direction"), MODULE_CASES)
def test_modules(op: str, direction: str, race: Callable[..., None], bench_device: str) -> None:
    dilations, shape, outputs = MODULES[op]
    x = make_logits(shape, scale=1.0, device=bench_device)
    weights = [
        make_logits((outputs, shape[1], 3, 3), scale=(9 * shape[1]) ** -0.5, seed=seed, device=bench_device)
        for seed in range(1, len(dilations) + 1)
    ]
    ours, theirs = modules(op, direction)
    layers = len(dilations)
    image, output = x.nbytes, x.nbytes // shape[1] * outputs
    # A pyramid reads its image once; a chain writes and reads each image between two layers.
    moved = image + sum(w.nbytes for w in weights) + output * (layers if op == PYRAMID else 2 * layers - 1)
    passes = 1 if direction == "forward" else 3
    race(
        Case(op, shape),
        direction,
        (x, *weights),
        contenders(ours, theirs),
        reference=theirs,
        own=theirs,
        floor_bytes=passes * moved,
        moved_bytes=passes * moved,
        products=passes * layers * 9 * outputs * x.numel(),
    )


def _rounded(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    """What an input rounded to TF32's 11 bits gives: what precision="fast" may be off by."""
    step = x.abs().amax() * 2.0**-11
    return function((x / step).round() * step)
