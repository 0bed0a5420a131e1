"""upsample_bilinear2d and upsample_cat: derivatives, graphs, fake tensors, what is refused and with which words."""

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
from tests.ops.graphs import assert_compiled_once, assert_forward_mode_is_refused, reloaded, unless_refused
from tests.ops.upsample_promises import (
    assert_compiled_is_eager,
    assert_no_gradient_unasked,
    assert_twice_differentiable,
)

SKIP = (2, 4, 7, 9)
OPS: dict[str, Callable[..., Tensor]] = {
    "x2": lambda x, **options: segops.upsample_bilinear2d(x, scale_factor=2, **options),
    "corners": lambda x, **options: segops.upsample_bilinear2d(x, (7, 9), align_corners=True, **options),
    "down": lambda x, **options: segops.upsample_bilinear2d(x, (2, 3), **options),
    "scale": lambda x, **options: segops.upsample_bilinear2d(x, scale_factor=(1.3, 2.4), **options),
    "cat": lambda x, **options: segops.upsample_cat(x, x.new_ones(len(x), *SKIP[1:]), **options),
}
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "channel_slice", "channels_last_crop", "transposed")

#: Operator and arguments behind the tensor, whose shape comes first.
OPERATORS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "upsample_bilinear2d": ((2, 3, 4, 5), (7, 11, False, 0.0, 2.3)),
    "upsample_bilinear2d_backward": ((2, 3, 7, 11), (4, 5, True, 0.0, 0.0)),
}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*OPERATORS, "upsample_cat"])
def test_opcheck(name: str, layout: str, kernel_backend: str, device: str) -> None:
    """Each operator, the backward with its own derivative, also where sizes leave the strides' meaning open."""
    op = getattr(getattr(torch.ops, backends.namespace(kernel_backend)), name).default
    shape, arguments = OPERATORS.get(name, ((2, 3, 4, 5), ()))
    for channels, dtype in ((shape[1], torch.float32), (1, torch.bfloat16)):
        x = make_logits((shape[0], channels, *shape[2:]), dtype, layout, device=device)
        if name == "upsample_cat":
            arguments = (
                make_logits(SKIP, dtype, layout, device=device).detach().requires_grad_(),
                False,
                channels == 1,
            )
        torch.library.opcheck(op, (x.detach().requires_grad_(), *arguments))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck_twice(layout: str, name: str, backend: str, device: str) -> None:
    assert_twice_differentiable(OPS[name], layout, backend, device)


def test_gradcheck_of_the_skip_connection(backend: str, device: str) -> None:
    x = make_logits((1, 2, 3, 4), torch.float64, device=device).requires_grad_()
    skip = make_logits((1, 1, 5, 6), torch.float64, "channels_last", device=device).requires_grad_()
    for order in ("skip_first", "up_first"):
        function = partial(segops.upsample_cat, order=order, backend=backend)
        assert torch.autograd.gradcheck(function, (x, skip), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (x, skip), fast_mode=True)


@pytest.mark.parametrize("name", OPS)
def test_compile_gives_the_same_bits(name: str, backend: str, device: str) -> None:
    assert_compiled_is_eager(OPS[name], backend, device)


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Compiled once for all sizes, with a size that depends on another tensor's; the ops are nodes among others."""
    gain = torch.ones(3, 1, 1, device=device, requires_grad=True)

    def step(x: Tensor, skip: Tensor) -> tuple[Tensor]:
        up = segops.upsample_bilinear2d(gain * x, skip.shape[2:], backend=kernel_backend)
        twice = segops.upsample_bilinear2d(gain * x, scale_factor=2.0, backend=kernel_backend)
        both = segops.upsample_cat(gain * x, skip, backend=kernel_backend)
        return ((up * skip).sum() + twice.square().sum() + both.square().sum(),)

    sizes = ((2, 20, 21), (3, 22, 25), (4, 23, 19))  # inductor compiles sums below 4096 addends anew
    inputs = (
        (torch.randn(n, 3, h, w, device=device), torch.randn(n, 3, 3 * h + 1, 2 * w + 1, device=device))
        for n, h, w in (sizes[:2] if kernel_backend == "triton" and device == "cpu" else sizes)
    )
    assert_compiled_once(step, gain, inputs, rtol=1e-4, atol=1e-3)


def test_export_holds_our_operators(device: str) -> None:
    class Decoder(torch.nn.Module):
        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return segops.upsample_bilinear2d(segops.upsample_cat(x, skip), scale_factor=2)

    x, skip = torch.randn(1, 2, 3, 4, device=device), torch.randn(1, 1, 6, 8, device=device)
    program = torch.export.export(Decoder(), (x, skip))
    assert {"segops.upsample_cat.default", "segops.upsample_bilinear2d.default"} <= {
        str(node.target) for node in program.graph.nodes
    }
    assert torch.equal(program.module()(x, skip), Decoder()(x, skip))


def test_export_with_dynamic_shapes_and_scales(device: str) -> None:
    """The size that a scale gives is worked out anew for every input, also by the loaded program."""

    class Upsample(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return segops.upsample_bilinear2d(x, scale_factor=(1.5, 2.0), align_corners=False)

    n, h, w = (torch.export.Dim(name, min=2, max=512) for name in "nhw")
    x = torch.randn(2, 3, 4, 6, device=device)
    module = reloaded(torch.export.export(Upsample(), (x,), dynamic_shapes=({0: n, 2: h, 3: w},)))
    for shape in ((2, 3, 4, 6), (3, 3, 7, 5), (5, 3, 31, 2)):
        x = torch.randn(shape, device=device)
        assert torch.equal(module(x), Upsample()(x))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap of grad"])
def test_function_transforms_work_or_are_refused(transform: str, name: str, kernel_backend: str, device: str) -> None:
    def loss(x: Tensor, backend: str = kernel_backend) -> Tensor:
        return OPS[name](x, backend=backend).square().sum()

    xs = torch.randn(3, 2, 2, 3, 4, device=device)

    def run(function: Callable[..., Tensor]) -> Tensor:
        if transform == "vmap":
            return torch.func.vmap(function)(xs)
        gradient = torch.func.grad(function)
        return gradient(xs[0]) if transform == "grad" else torch.func.vmap(gradient)(xs)

    expected, result = run(partial(loss, backend="reference")), unless_refused(lambda: run(loss))
    assert result is None or torch.allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_fake_and_meta_tensors_give_shapes_and_strides() -> None:
    for layout in ("contiguous", "channels_last"):
        x = make_logits((2, 3, 4, 5), torch.float16, layout)
        expected = F.interpolate(x, scale_factor=2, mode="bilinear")
        with FakeTensorMode() as mode:
            fake = segops.upsample_bilinear2d(mode.from_tensor(x), scale_factor=2)
        meta = segops.upsample_bilinear2d(x.to("meta"), (8, 10))
        for result in (fake, meta):
            assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_is_refused(name: str, kernel_backend: str, device: str) -> None:
    x = make_logits((2, 2, 3, 4), device=device)
    assert_forward_mode_is_refused(partial(OPS[name], backend=kernel_backend), x)


def test_input_that_needs_no_gradient(kernel_backend: str, device: str) -> None:
    for function in OPS.values():
        assert_no_gradient_unasked(function, kernel_backend, device)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ([[1.0]], TypeError, "input must be a tensor, got list"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), TypeError, "float16, got torch.uint8"),
        (torch.zeros(2, 2), ValueError, "input must be [N, C, h, w] with C, h and w at least 1, got [2, 2]"),
        (torch.zeros(1, 2, 0, 2), ValueError, "at least 1, got [1, 2, 0, 2]"),
        (torch.zeros(1, 1, 2, 2).to_sparse(), TypeError, "input must be a dense tensor"),
    ],
)
def test_bad_input(x: Any, error: type[Exception], words: str, backend: str, device: str) -> None:
    x = x.to(device) if isinstance(x, Tensor) else x
    with pytest.raises(error, match="segops.upsample_bilinear2d: .*" + re.escape(words)):
        segops.upsample_bilinear2d(x, 2, backend=backend)
    with pytest.raises(error, match=r"segops.upsample_cat: "):
        segops.upsample_cat(x, torch.zeros(1, 1, 2, 2, device=device), backend=backend)


@pytest.mark.parametrize(
    ("skip", "options", "error", "words"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            {},
            ValueError,
            "skip must have the batch of input, got [2, 1, 4, 4] for [1, 1, 2, 2]",
        ),
        (torch.zeros(1, 4, 4), {}, ValueError, "skip must be [N, C, h, w]"),
        (torch.zeros(1, 1, 4, 4).int(), {}, TypeError, "skip must be float32"),
        (
            torch.zeros(1, 1, 4, 4),
            {"order": "last"},
            ValueError,
            'order must be "skip_first" or "up_first", got \'last\'',
        ),
        (torch.zeros(1, 1, 4, 4), {"align_corners": 1}, TypeError, "align_corners must be a bool, got int"),
        (torch.zeros(1, 1, 4, 4, device="meta"), {}, ValueError, "skip must be on cpu like input, got meta"),
    ],
)
def test_bad_skip(skip: Tensor, options: dict[str, Any], error: type[Exception], words: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape("segops.upsample_cat: ") + ".*" + re.escape(words)):
        segops.upsample_cat(torch.zeros(1, 1, 2, 2), skip, backend=backend, **options)


def test_sizes_are_checked_before_anything_runs(backend: str, device: str) -> None:
    x = torch.zeros(1, 1, 2, 2, device=device)
    with pytest.raises(ValueError, match="exactly one of size and scale_factor"):
        segops.upsample_bilinear2d(x, 3, 2.0, backend=backend)
    with pytest.raises(ValueError, match="size must be at least 1"):
        segops.upsample_bilinear2d(x, (0, 3), backend=backend)


def test_operators_refuse_what_memory_safety_needs(kernel_backend: str, device: str) -> None:
    if kernel_backend == "triton":
        pytest.skip("the binding's checks")
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    x = torch.zeros(1, 1, 4, 6, device=device)
    for call in (
        lambda: ops.upsample_bilinear2d(x, 0, 3, False, 0.0, 0.0),
        lambda: ops.upsample_bilinear2d(x[:, :, :0], 3, 3, False, 0.0, 0.0),
        lambda: ops.upsample_bilinear2d(x.long(), 3, 3, False, 0.0, 0.0),
        lambda: ops.upsample_bilinear2d_backward(x[0], 3, 3, False, 0.0, 0.0),
        lambda: ops.upsample_cat(x, x.double(), False, True),
        lambda: ops.upsample_cat(x, x.expand(2, 1, 4, 6), False, True),
    ):
        with pytest.raises(RuntimeError, match=r"segops.upsample_(bilinear2d|cat): "):
            call()
