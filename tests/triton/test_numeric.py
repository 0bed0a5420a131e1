"""The conversions and the exponential that kernels share, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from segops.triton import dice_ce_loss as op
from segops.triton import interpreting
from segops.triton._runtime import launch
from segops.triton.numeric import exp_of_difference, log1p, narrow, widen
from tests.cases import make_logits, random_labels

pytestmark = pytest.mark.skipif(not interpreting(), reason="kernels are compiled: they need CUDA tensors")


@triton.jit
def _widen_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, widen(tl.load(x + at), tl.float32))


@triton.jit
def _narrow_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, narrow(tl.load(x + at), y.dtype.element_ty, True))


@triton.jit
def _exp_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, exp_of_difference(tl.load(x + at)))


@triton.jit
def _log1p_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, log1p(tl.load(x + at)))


def apply(kernel: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.empty_like(x, dtype=dtype)
    launch(kernel, 1, x, x, y, BLOCK=x.numel())
    return y


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_is_widened_exactly(dtype: torch.dtype) -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert same(apply(_widen_kernel, x, torch.float32), x.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_to_nearest_even(dtype: torch.dtype) -> None:
    """All bf16 numbers, the ties between them, what is just beside those, and random bits."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int64) << 16
    bits = torch.cat([bits, bits + 0x8000, bits + 0x7FFF, bits + 0x8001])
    x = torch.cat([bits.to(torch.int32), torch.randint(-(1 << 31), 1 << 31, (1 << 18,)).to(torch.int32)]).view(
        torch.float32
    )
    assert same(apply(_narrow_kernel, x, dtype), x.to(dtype))


def test_exponential() -> None:
    """A few units in the last place over the whole range, exact at 0, and 0 or NaN where it must be."""
    x = torch.cat(
        [-torch.linspace(0, 87.3, (1 << 16) - 6), torch.tensor([0.0, -0.0, -1e-30, -89.0, -1e30, -float("inf")])]
    )
    y, truth = apply(_exp_kernel, x, torch.float32), x.double().exp()
    error = ((y.double() - truth) / truth)[:-3].abs()
    assert float(error.max()) < 2.5 * torch.finfo(torch.float32).eps
    assert y[-6:].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert apply(_exp_kernel, torch.full((16,), float("nan")), torch.float32).isnan().all()
    double = -torch.linspace(0, 700, 1 << 12, dtype=torch.float64)
    torch.testing.assert_close(apply(_exp_kernel, double, torch.float64), double.exp(), rtol=1e-15, atol=0)


def test_logarithm_of_a_little_more_than_one() -> None:
    """A few units in the last place, relative to results that go down to the smallest numbers."""
    for dtype, units in ((torch.float32, 2.0), (torch.float64, 4.0)):
        x = torch.cat([torch.linspace(0, 1, (1 << 15) - 2), torch.logspace(-37, 0, 1 << 15)]).to(dtype)
        x = torch.cat([x, torch.tensor([0.0, float("nan")], dtype=dtype)])
        y, truth = apply(_log1p_kernel, x, dtype), x.double().log1p()
        error = ((y.double() - truth) / truth)[1:-2].abs()
        assert float(error.max()) < units * torch.finfo(dtype).eps
        assert y[-2] == 0
        assert y[-1].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [5, 70])
def test_16_bit_logits_are_computed_with_in_float32(
    classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the result of the same logits in float32, rounded once.

    The interpreter multiplies the bits of bfloat16 numbers as integers, and cuts float32 off instead of rounding it.
    """
    cut = op.plan(classes, 9 * 13, dtype.itemsize, False)
    monkeypatch.setattr(op, "plan", lambda *_: cut)  # sums in the same order
    logits, target = make_logits((2, classes, 9, 13), dtype), random_labels((2, 9, 13), classes)
    grad_overlap, grad_ce = torch.randn(2, 3, classes).double(), torch.randn(2).double()

    def results(x: Tensor) -> tuple[Tensor, Tensor]:
        ce_map = op.statistics(x, target, None, None, -100, 0.1, False, True, True, True, 0)[2]
        return ce_map, op.backward(x, target, None, None, grad_overlap, grad_ce, -100, 0.1, True)

    (ce_map, grad), (single_map, single_grad) = results(logits), results(logits.float())
    assert torch.equal(ce_map, single_map)
    assert torch.equal(grad, single_grad.to(dtype))
