"""The one table of tolerances, and the rule that it serves.

Against a float64 truth, a result may be at most `FACTOR` times as far off as PyTorch's own result in the same dtype,
plus a few units in the last place of the largest element (PyTorch may be exact by luck). Accumulating in float32, a
16-bit result must also be the float64 truth rounded once, up to the float32 error. What is exact by nature, like
counts, labels, NaN and infinity, is compared for equality.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FACTOR = 2.0

#: The absolute term, in units of the dtype's eps (its spacing at 1) times the result's scale.
UNITS = {
    torch.float32: 4.0,
    # The truth has the same precision: this covers the rounding of its own sums, over a thousand classes for instance.
    torch.float64: 512.0,
    torch.bfloat16: 0.5,
    torch.float16: 0.5,
}


#: Integers of as many bytes.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """The elements as integers: every NaN, and both zeros, are themselves."""
    return x.contiguous().view(BITS[x.element_size()])


def assert_near(
    actual: Tensor, truth: Tensor, own: Tensor, own_accumulated: Tensor | None = None, *, scale: float = 0.0, what: str
) -> None:
    """Assert the rule of this page.

    Args:
        actual: the result under test.
        truth: the float64 result.
        own: PyTorch's result in the dtype of `actual`.
        own_accumulated: for a 16-bit `actual`, PyTorch's result in float32.
        scale: magnitude of the terms that the result is made of, where they may cancel; at least the largest element of
            the truth is taken.
        what: names the result in a failure.
    """
    dtype = actual.dtype
    assert dtype == own.dtype, f"{what}: {dtype}, but PyTorch's own is {own.dtype}"
    assert actual.shape == truth.shape, f"{what}: shape {list(actual.shape)}, expected {list(truth.shape)}"
    if truth.numel() == 0:
        return
    actual, truth, own = actual.detach().cpu(), truth.detach().cpu(), own.detach().cpu().double()
    rounded = truth.to(dtype)
    accumulated = own if own_accumulated is None else own_accumulated.detach().cpu()
    # Differences of logits may overflow where float64 does not; then PyTorch's infinity or NaN is as good.
    unequal = ~_same_special(actual, rounded) & ~_same_special(actual, accumulated.to(dtype))
    assert not unequal.any(), (
        f"{what}: NaN or infinity differ at {unequal.nonzero()[:3].tolist()}: "
        f"{actual[unequal][:3].tolist()} for {truth[unequal][:3].tolist()}"
    )
    finite = rounded.isfinite() & actual.isfinite()
    if not finite.any():
        return
    expected, error = truth[finite], (actual.double() - truth).abs()[finite]
    scale = max(scale, float(expected.abs().max()))
    # Where PyTorch overflows and the truth does not, its error is no yardstick; the rounding rule below remains.
    limit = FACTOR * float((own[finite] - expected).abs().nan_to_num(float("inf")).max())
    limit += UNITS[dtype] * torch.finfo(dtype).eps * scale
    worst = int(error.argmax())
    assert float(error[worst]) <= limit, (
        f"{what}: error {float(error[worst]):.3e} at an element of {float(expected[worst]):.6e}, limit {limit:.3e} "
        f"({dtype}, largest element {scale:.3e})"
    )
    if own_accumulated is not None:
        work = FACTOR * float((accumulated.double() - truth)[finite].abs().max())
        work += UNITS[torch.float32] * torch.finfo(torch.float32).eps * scale
        half_unit = (
            torch.finfo(dtype).eps / 2 * expected.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        )
        excess = error - half_unit - work
        worst = int(excess.argmax())
        assert float(excess[worst]) <= 0, (
            f"{what}: error {float(error[worst]):.3e} at an element of {float(expected[worst]):.6e} is more than one "
            f"rounding to {dtype} and a float32 error of {work:.3e}"
        )


def _same_special(a: Tensor, b: Tensor) -> Tensor:
    """Where both are finite, or both the same of NaN, infinity and minus infinity."""
    return (a.isfinite() & b.isfinite()) | (a.isnan() & b.isnan()) | (a.isinf() & (a == b))


class Outcome(NamedTuple):
    value: Tensor
    gradient: Tensor


def outcome(function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor | None = None) -> Outcome:
    """``function(x)`` and its gradient with respect to x for the gradient `upstream` of its value (default: ones)."""
    x = x.detach().requires_grad_()
    value = function(x)
    grad_value = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    (gradient,) = torch.autograd.grad(value, x, grad_value)
    return Outcome(value.detach(), gradient)


class Comparison(NamedTuple):
    actual: Outcome
    truth: Outcome
    own: Outcome


def compare(
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    upstream: Tensor | None = None,
    value_scale: float = 1.0,
    gradient_scale: float = 0.0,
    what: str = "loss",
) -> Comparison:
    """Assert the rule for value and gradient of `ours` in the dtype of x.

    `theirs` is the same function in PyTorch; it computes in the dtype of its argument, so that called with float64 it
    gives the truth, and with x itself PyTorch's own result.
    """
    actual = outcome(ours, x, upstream)
    truth = outcome(theirs, x.double(), upstream)
    own = outcome(theirs, x, upstream)
    accumulated = outcome(theirs, x.float(), upstream) if x.dtype.itemsize == 2 else Outcome(None, None)
    assert_near(actual.value, truth.value, own.value, accumulated.value, scale=value_scale, what=f"{what}: value")
    assert_near(
        actual.gradient,
        truth.gradient,
        own.gradient,
        accumulated.gradient,
        scale=gradient_scale,
        what=f"{what}: gradient",
    )
    return Comparison(actual, truth, own)
