"""What every upsampling operator promises of derivatives and of torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.cases import make_logits


def assert_twice_differentiable(function: Callable[..., Tensor], layout: str, backend: str, device: str) -> None:
    x = make_logits((2, 3, 3, 4), torch.float64, layout, device=device).requires_grad_()
    fast = backend == "triton"  # the interpreter takes long
    assert torch.autograd.gradcheck(lambda t: function(t, backend=backend), (x,), fast_mode=fast)
    assert torch.autograd.gradgradcheck(lambda t: function(t, backend=backend), (x,), fast_mode=fast)


def assert_no_gradient_unasked(function: Callable[..., Tensor], backend: str, device: str) -> None:
    x = make_logits((2, 2, 3, 4), device=device)
    assert not function(x, backend=backend).requires_grad
    with torch.no_grad():
        assert not function(x.detach().requires_grad_(), backend=backend).requires_grad


def assert_compiled_is_eager(function: Callable[..., Tensor], backend: str, device: str) -> None:
    """In one graph, output and gradient have the same bits and strides, in each layout."""

    def step(x: Tensor) -> Tensor:
        return function(x, backend=backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for layout in ("contiguous", "channels_last", "sliced"):
        results = []
        for run in (step, compiled):
            x = make_logits((2, 3, 4, 5), torch.bfloat16, layout, device=device).requires_grad_()
            y = run(x)
            grad = torch.empty_like(y).copy_(make_logits(tuple(y.shape), device=device))
            results.append((y.detach(), *torch.autograd.grad(y, x, grad)))
        for eager, same in zip(*results, strict=True):
            assert torch.equal(same, eager)
            assert backend == "reference" or same.stride() == eager.stride()
