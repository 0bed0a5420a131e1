"""dice_ce_loss of coarse logits inside graphs: torch.library.opcheck, torch.compile, torch.export, fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from segops import backends
from tests.cases import make_logits, random_labels
from tests.ops.dice_ce_loss_eager import OPTIONS, fill
from tests.ops.graphs import assert_compiled_once
from tests.ops.loss_graphs import (
    BACKWARD_LAYOUTS,
    Loss,
    assert_further_derivatives_are_refused,
    assert_same_bits,
    doubles,
)

N, C, H, W = 2, 5, 13, 11
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
U8, I16, I32, I64 = torch.uint8, torch.int16, torch.int32, torch.int64

# [logits dtype, layout, label dtype, (h, w), weights?, then the operator's own options]
STATISTICS = {
    "plain": (F32, "contiguous", I64, (4, 5), False, (-100, 0.0, False, True, False, False, 0, False)),
    "weights, parts": (F64, "channels_last", U8, (3, 11), True, (1, 0.1, True, True, True, False, 0, True)),
    "map": (BF16, "channels_last", I32, (13, 2), True, (-1, 0.0, False, False, False, True, 0, False)),
    "strided": (F16, "sliced", I16, (4, 5), False, (-100, 0.0, False, True, False, False, 1, True)),
    "one pixel": (F32, "contiguous", I64, (1, 1), True, (-100, 0.0, False, True, True, False, 0, False)),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def sample_inputs(sample: tuple[Any, ...], device: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype, layout, label_dtype, spatial, with_weights, options = sample
    logits = make_logits((N, C, *spatial), dtype, layout, device=device)
    target = random_labels((N, H, W), C, label_dtype, options[0] if options[0] >= 0 else None, device=device)
    if not with_weights:
        return logits, target, None, None
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    return logits, target, doubles(C).to(device), doubles(N, H, W).to(device, accumulate)


@pytest.mark.parametrize("name", STATISTICS)
def test_opcheck_statistics(name: str, kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_coarse_statistics.default
    logits, *others = sample_inputs(STATISTICS[name], device)
    arguments = (logits.requires_grad_(), *others, *STATISTICS[name][-1])
    torch.library.opcheck(op, arguments)
    torch.library.opcheck(op, (logits.detach(), *arguments[1:]), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", STATISTICS)
def test_opcheck_backward(name: str, kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_coarse_backward.default
    inputs, options = sample_inputs(STATISTICS[name], device), STATISTICS[name][-1]
    for grad_overlap, grad_ce in ((doubles(N, 3, C).to(device), None), (None, doubles(2).to(device))):
        torch.library.opcheck(op, (*inputs, grad_overlap, grad_ce, *options[:3], options[-1]))


@pytest.mark.parametrize("layout", BACKWARD_LAYOUTS)
def test_opcheck_backward_layouts(layout: str, kernel_backend: str, device: str) -> None:
    """The fake must know the strides of the gradient for every layout of the logits."""
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_coarse_backward.default
    logits = make_logits((N, C, 4, 5), layout=layout, device=device)
    target = random_labels((N, H, W), C, device=device)
    gradients = (doubles(N, 3, C).to(device), doubles(2).to(device))
    torch.library.opcheck(op, (logits, target, None, None, *gradients, -100, 0.0, False, False))


@pytest.mark.parametrize("name", ["default", "skip absent", "everything", "map"])
def test_compile_gives_the_same_bits(name: str, kernel_backend: str, device: str) -> None:
    options = {"reduction": "none", "dice_weight": 0.0} if name == "map" else OPTIONS[name]
    options = fill(options, make_logits((N, C, H, W), device=device))
    target = random_labels((N, H, W), C, device=device)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return segops.dice_ce_loss(x, t, align_corners=True, backend=kernel_backend, **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for layout, dtype in (("contiguous", F32), ("channels_last", BF16), ("sliced", F32), ("contiguous", BF16)):
        x = make_logits((N, C, 4, 5), dtype, layout, device=device)
        assert_same_bits(compiled, loss, x, target)


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Compiled once for all sizes of logits and target."""
    gain = torch.ones(C, 1, 1, device=device, requires_grad=True)

    def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss, parts = segops.dice_ce_loss(gain * images, target, return_parts=True, backend=kernel_backend)
        return 2 * loss, parts.confusion

    sizes = ((2, 3, 4, 12, 14), (3, 5, 2, 9, 7), (4, 2, 6, 11, 13))
    inputs = (
        (torch.randn(n, C, h, w, device=device), random_labels((n, height, width), C, device=device))
        for n, h, w, height, width in sizes
    )
    assert_compiled_once(step, gain, inputs, rtol=1e-5, atol=1e-7)


def test_export_calls_the_operators_alone(device: str) -> None:
    logits, target = make_logits((N, C, 4, 5), device=device), random_labels((N, 16, 20), C, device=device)
    program = torch.export.export(Loss(segops.dice_ce_loss), (logits, target))
    called = {str(node.target) for node in program.graph.nodes if "segops." in str(node.target)}
    assert called == {"segops.dice_ce_loss_coarse_statistics.default", "segops.dice_ce_loss_value.default"}
    assert torch.equal(program.module()(logits, target), segops.dice_ce_loss(logits, target))


def test_meta_and_fake_tensors_give_shapes() -> None:
    logits = torch.empty(2, 5, 3, 4, device="meta", requires_grad=True)
    target = torch.empty(2, 9, 9, dtype=torch.int64, device="meta")
    loss, parts = segops.dice_ce_loss(logits, target, return_parts=True, validate="off")
    loss.backward()
    assert loss.shape == ()
    assert parts.confusion.shape == (5, 5)
    assert logits.grad.shape == logits.shape


def test_derivatives_that_are_missing_are_refused() -> None:
    logits = make_logits((2, 3, 4, 4), torch.float64).requires_grad_()
    target = random_labels((2, 9, 9), 3)
    assert_further_derivatives_are_refused(segops.dice_ce_loss, logits, target)
