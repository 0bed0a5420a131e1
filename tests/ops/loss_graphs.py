"""What the tests of both losses inside graphs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from tests.cases import LAYOUTS, VIEWS

#: The fake of a backward must know the strides of the gradient for each of them.
BACKWARD_LAYOUTS = (*LAYOUTS, *VIEWS)


class Loss(torch.nn.Module):
    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return self.function(logits, target, **self.options)


def doubles(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def gradient_of(loss: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.detach().requires_grad_()
    value = loss(x, target)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def assert_same_bits(actual: Any, expected: Any, logits: Tensor, target: Tensor, *, strides: bool = True) -> None:
    """Two functions give the same value and gradient."""
    value, gradient = gradient_of(actual, logits, target)
    expected_value, expected_gradient = gradient_of(expected, logits, target)
    assert torch.equal(value, expected_value)
    assert torch.equal(gradient, expected_gradient)
    assert not strides or gradient.stride() == expected_gradient.stride()


def assert_equal_leaves(actual: Any, expected: Any) -> None:
    """A loss, or a loss and its parts."""
    leaves = torch.utils._pytree.tree_leaves
    for ours, eager in zip(leaves(actual), leaves(expected), strict=True):
        assert torch.equal(ours, eager)


def checked(call: Callable[[], object]) -> None:
    """The call, and what a device has to tell of the labels by then."""
    call()
    segops.check_errors()


def assert_further_derivatives_are_refused(loss: Any, logits: Tensor, target: Tensor) -> None:
    """Those of the gradient, and those in forward mode."""
    (gradient,) = torch.autograd.grad(loss(logits, target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match=rf"segops\.{loss.__name__}: forward-mode AD"):
        torch.func.jvp(lambda x: loss(x, target), (logits.detach(),), (torch.ones_like(logits),))
