"""upsample_nearest2d and bed_of_nails2d: derivatives, graphs, fake tensors, what is refused and with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import segops
from segops import backends
from tests.cases import make_logits
from tests.ops.graphs import assert_compiled_once, assert_forward_mode_is_refused, unless_refused
from tests.ops.upsample_promises import (
    assert_compiled_is_eager,
    assert_no_gradient_unasked,
    assert_twice_differentiable,
)

OPS: dict[str, Callable[..., Tensor]] = {
    "x2": lambda x, **options: segops.upsample_nearest2d(x, scale_factor=2, **options),
    "broken": lambda x, **options: segops.upsample_nearest2d(x, (7, 5), **options),
    "scale": lambda x, **options: segops.upsample_nearest2d(x, scale_factor=(1.3, 2.4), **options),
    "nails": lambda x, **options: segops.bed_of_nails2d(x, 3, **options),
}
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "channel_slice", "channels_last_crop", "transposed")

#: Operator and arguments behind the tensor, whose shape comes first.
OPERATORS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "upsample_nearest2d": ((2, 3, 4, 5), (7, 11, 0.0, 2.3)),
    "upsample_nearest2d_backward": ((2, 3, 7, 11), (4, 5, 0.0, 2.3)),
    "bed_of_nails2d": ((2, 3, 4, 5), (3,)),
    "bed_of_nails2d_backward": ((2, 3, 6, 9), (3,)),
}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, layout: str, kernel_backend: str, device: str) -> None:
    """Each operator, the backwards with their own derivatives, also where sizes leave the strides' meaning open."""
    op = getattr(getattr(torch.ops, backends.namespace(kernel_backend)), name).default
    shape, arguments = OPERATORS[name]
    for channels, dtype in ((shape[1], torch.float32), (1, torch.bfloat16)):
        x = make_logits((shape[0], channels, *shape[2:]), dtype, layout, device=device)
        torch.library.opcheck(op, (x.detach().requires_grad_(), *arguments))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck_twice(layout: str, name: str, backend: str, device: str) -> None:
    assert_twice_differentiable(OPS[name], layout, backend, device)


@pytest.mark.parametrize("name", OPS)
def test_compile_gives_the_same_bits(name: str, backend: str, device: str) -> None:
    assert_compiled_is_eager(OPS[name], backend, device)


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Compiled once for all sizes, with a size that depends on another tensor's; the ops are nodes among others."""
    gain = torch.ones(3, 1, 1, device=device, requires_grad=True)

    def step(x: Tensor, skip: Tensor) -> tuple[Tensor]:
        up = segops.upsample_nearest2d(gain * x, skip.shape[2:], backend=kernel_backend)
        twice = segops.upsample_nearest2d(gain * x, scale_factor=2.0, backend=kernel_backend)
        nails = segops.bed_of_nails2d(gain * x, 2, backend=kernel_backend)
        return ((up * skip).sum() + (twice * nails).sum(),)

    inputs = (
        (torch.randn(n, 3, h, w, device=device), torch.randn(n, 3, 3 * h + 1, 2 * w + 1, device=device))
        for n, h, w in ((2, 20, 21), (3, 22, 25), (4, 23, 19))  # inductor compiles sums below 4096 addends anew
    )
    assert_compiled_once(step, gain, inputs, rtol=1e-4, atol=1e-3)


def test_fake_and_meta_tensors_give_shapes_and_strides() -> None:
    for layout in ("contiguous", "channels_last"):
        x = make_logits((2, 3, 4, 5), torch.float16, layout)
        expected = F.interpolate(x, scale_factor=2)
        with FakeTensorMode() as mode:
            fake = segops.upsample_nearest2d(mode.from_tensor(x), scale_factor=2)
        meta = segops.bed_of_nails2d(x.to("meta"), 2)
        for result in (fake, meta):
            assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_works_or_is_refused(name: str, kernel_backend: str, device: str) -> None:
    x = make_logits((1, 2, 3, 4), device=device)
    assert_forward_mode_is_refused(partial(OPS[name], backend=kernel_backend), x)


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_function_transforms_work_or_are_refused(transform: str, device: str) -> None:
    x = make_logits((3, 1, 2, 3, 4), device=device)
    for function in OPS.values():
        if transform == "vmap":
            result = unless_refused(lambda: torch.func.vmap(function)(x))  # noqa: B023
            expected = torch.stack([function(one) for one in x])
        else:
            result = unless_refused(lambda: torch.func.grad(lambda t: function(t).square().sum())(x[0]))  # noqa: B023
            expected = 2 * torch.autograd.functional.vjp(function, x[0], function(x[0]))[1]
        assert result is None or torch.equal(result, expected)


def test_input_that_needs_no_gradient(kernel_backend: str, device: str) -> None:
    for function in OPS.values():
        assert_no_gradient_unasked(function, kernel_backend, device)


@pytest.mark.parametrize("op", ["upsample_nearest2d", "bed_of_nails2d"])
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ([[1.0]], TypeError, "input must be a tensor, got list"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), TypeError, "float16, got torch.int64"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.bool), TypeError, "float16, got torch.bool"),
        (torch.zeros(2, 2), ValueError, "input must be [N, C, h, w] with C, h and w at least 1, got [2, 2]"),
        (torch.zeros(1, 2, 0, 2), ValueError, "at least 1, got [1, 2, 0, 2]"),
        (torch.zeros(1, 0, 2, 2), ValueError, "at least 1, got [1, 0, 2, 2]"),
        (torch.zeros(1, 1, 2, 2).to_sparse(), TypeError, "input must be a dense tensor"),
    ],
)
def test_bad_input(x: Any, error: type[Exception], words: str, op: str, backend: str, device: str) -> None:
    x = x.to(device) if isinstance(x, Tensor) else x
    with pytest.raises(error, match=re.escape(f"segops.{op}: ") + ".*" + re.escape(words)):
        getattr(segops, op)(x, 2, backend=backend)


@pytest.mark.parametrize(
    ("scale", "error", "words"),
    [
        (0, ValueError, "at least 1 and below 2**31, got 0"),
        (2.0, TypeError, "an int, got 2.0"),
        (True, TypeError, "an int, got True"),
    ],
)
def test_bad_scale_of_nails(scale: Any, error: type[Exception], words: str, backend: str, device: str) -> None:
    with pytest.raises(error, match=re.escape(f"segops.bed_of_nails2d: scale must be {words}")):
        segops.bed_of_nails2d(torch.zeros(1, 1, 2, 2, device=device), scale, backend=backend)


def test_sizes_are_checked_before_anything_runs(backend: str, device: str) -> None:
    x = torch.zeros(1, 1, 2, 2, device=device)
    with pytest.raises(ValueError, match="exactly one of size and scale_factor"):
        segops.upsample_nearest2d(x, 3, 2.0, backend=backend)
    with pytest.raises(ValueError, match="size must be at least 1"):
        segops.upsample_nearest2d(x, (0, 3), backend=backend)


def test_operators_refuse_what_memory_safety_needs(kernel_backend: str, device: str) -> None:
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    x = torch.zeros(1, 1, 4, 6, device=device)
    with pytest.raises(RuntimeError):
        ops.upsample_nearest2d(x, 0, 3, 0.0, 0.0)
    with pytest.raises(RuntimeError):
        ops.upsample_nearest2d(x[:, :, :0], 3, 3, 0.0, 0.0)
    with pytest.raises(RuntimeError):
        ops.bed_of_nails2d_backward(x, 4)
    with pytest.raises(RuntimeError):
        ops.bed_of_nails2d(x, 0)


def test_the_second_derivative_is_the_operator(kernel_backend: str, device: str) -> None:
    """The gradient of a gradient is the operator itself."""
    x = make_logits((1, 2, 3, 4), torch.float64, device=device).requires_grad_()
    y = segops.upsample_nearest2d(x, (5, 9), backend=kernel_backend)
    grad = torch.randn_like(y).requires_grad_()
    (gradient,) = torch.autograd.grad(y, x, grad, create_graph=True)
    direction = torch.randn_like(gradient)
    (second,) = torch.autograd.grad(gradient, grad, direction)
    assert torch.equal(second, segops.upsample_nearest2d(direction, (5, 9), backend="reference"))
