"""dilated_conv2d: derivatives, graphs, fake tensors, what is refused and with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import segops
from segops import backends
from segops.ops.dilated_conv import prepack
from tests.cases import make_logits
from tests.ops.graphs import assert_compiled_once, unless_refused

WINDOW = [1, 2, 1, 0, 2, 1]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def operands(device: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> list[Tensor]:
    """input, weight, bias, scale, shift, residual, slope of a convolution by WINDOW."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = ((2, 3, 6, 7), (4, 3, 3, 2), (4,), (4,), (4,), (2, 4, 4, 3), (4,))
    made = []
    for seed, shape in enumerate(shapes):
        t = make_logits(shape, dtype, layout if len(shape) == 4 and seed != 1 else "contiguous", 1.0, seed, device)
        made.append((t if len(shape) == 4 else t.to(wide)).detach().requires_grad_())
    return made


def operation(backend: str, activation: str | None, *t: Tensor) -> Tensor:
    input, weight, bias, scale, shift, residual, slope = t
    return segops.dilated_conv2d(
        input,
        weight,
        bias,
        (1, 2),
        (1, 0),
        (2, 1),
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        slope=slope if activation == "prelu" else None,
        backend=backend,
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
def test_opcheck(layout: str, kernel_backend: str, device: str) -> None:
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    for dtype, activation in (
        ((torch.float32, 5), (torch.bfloat16, 3)) if kernel_backend != "triton" else ((torch.float32, 5),)
    ):
        t = operands(device, dtype, layout)
        slope = t[6] if activation == 5 else None
        torch.library.opcheck(ops.dilated_conv2d.default, (*t[:6], slope, WINDOW, 1, activation, False))
        grad = make_logits((2, 4, 4, 3), dtype, layout, 1.0, 9, device)
        x, weight = t[0].detach(), t[1].detach()
        torch.library.opcheck(ops.dilated_conv2d_grad_input.default, (grad, weight, 6, 7, WINDOW, 1, False))
        torch.library.opcheck(ops.dilated_conv2d_grad_weight.default, (x, grad, weight, WINDOW, 1, False))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu", "sigmoid", "prelu"])
def test_gradcheck(activation: str | None, backend: str, device: str) -> None:
    t = operands(device, torch.float64)
    t = t if activation == "prelu" else [*t[:6], t[6].detach()]
    fast = backend != "native"
    assert torch.autograd.gradcheck(partial(operation, backend, activation), t, fast_mode=fast)


def test_only_what_is_asked_for(kernel_backend: str, device: str) -> None:
    """One gradient at a time, and no graph where none is."""
    for index in range(7):
        t = [x.detach() for x in operands(device, torch.float64)]
        t[index].requires_grad_()
        y, expected = (operation(b, "prelu", *t) for b in (kernel_backend, "reference"))
        for a, b in zip(*(torch.autograd.grad(v.sum(), t[index]) for v in (y, expected)), strict=True):
            assert torch.allclose(a, b, atol=1e-9)
    assert not operation(kernel_backend, "prelu", *(x.detach() for x in t)).requires_grad


def test_compile_gives_the_same_bits(kernel_backend: str, device: str) -> None:
    step = partial(operation, kernel_backend, "silu")
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for layout in ("contiguous", "channels_last"):
        results = []
        for run in (step, compiled):
            t = operands(device, torch.float32, layout)
            y = run(*t)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), t[:6])))
        for eager, same in zip(*results, strict=True):
            assert torch.equal(same, eager)
            assert same.stride() == eager.stride()


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    if kernel_backend == "triton" and device == "cpu":
        pytest.skip("slow in the interpreter, and no other code than native's")
    weight = make_logits((4, 3, 3, 3), device=device).requires_grad_()

    def step(x: Tensor) -> tuple[Tensor]:
        y = segops.dilated_conv2d(x * 2, weight, None, 1, "same", 2, activation="relu", backend=kernel_backend)
        return ((y + 1).square().mean(),)

    inputs = ((torch.randn(n, 3, h, w, device=device),) for n, h, w in ((2, 40, 41), (3, 50, 43), (4, 37, 61)))
    assert_compiled_once(step, weight, inputs, rtol=1e-3, atol=1e-4)


def test_export_holds_our_operator(device: str) -> None:
    layer = segops.nn.DilatedConv2d(3, 4, 3, padding=2, dilation=2, device=device)
    x = torch.randn(1, 3, 8, 8, device=device)
    program = torch.export.export(layer, (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "segops.dilated_conv2d.default" in targets
    assert not [name for name in targets if "convolution" in name]
    assert torch.equal(program.module()(x), layer(x))


def test_fake_and_meta_tensors_give_shapes_and_strides() -> None:
    for layout in ("contiguous", "channels_last"):
        x, weight = make_logits((2, 3, 9, 8), torch.float16, layout), make_logits((5, 3, 3, 3), torch.float16)
        expected = segops.dilated_conv2d(x, weight, None, 2, 1)
        with FakeTensorMode() as mode:
            fake = segops.dilated_conv2d(mode.from_tensor(x), mode.from_tensor(weight), None, 2, 1)
        meta = segops.dilated_conv2d(x.to("meta"), weight.to("meta"), None, 2, 1)
        for result in (fake, meta):
            assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), expected.dtype)


def test_double_backward_is_refused(kernel_backend: str, device: str) -> None:
    t = operands(device)
    (grad,) = torch.autograd.grad(operation(kernel_backend, "sigmoid", *t).sum(), t[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"segops.dilated_conv2d: double backward is not implemented"):
        torch.autograd.grad(grad.sum(), t[1])


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_function_transforms_work_or_are_refused(transform: str, kernel_backend: str, device: str) -> None:
    weight = torch.randn(2, 2, 3, 3, device=device)
    xs = torch.randn(3, 1, 2, 5, 5, device=device)

    def loss(x: Tensor, backend: str = kernel_backend) -> Tensor:
        return segops.dilated_conv2d(x, weight, activation="relu", backend=backend).square().sum()

    def run(function: Callable[..., Tensor]) -> Any:
        if transform == "jvp":
            return torch.func.jvp(function, (xs[0],), (xs[1],))[1]
        return torch.func.vmap(function)(xs) if transform == "vmap" else torch.func.grad(function)(xs[0])

    expected = run(partial(loss, backend="reference"))
    result = unless_refused(lambda: run(loss), "vmap|functorch transforms|torch.func|forward|jvp")
    assert result is None or torch.allclose(result, expected, rtol=1e-4, atol=1e-4)


X, W = torch.zeros(1, 4, 6, 6), torch.zeros(6, 2, 3, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"input": [1.0]}, TypeError, "input must be a tensor, got list"),
        ({"input": X.int()}, TypeError, "input must be float32"),
        ({"input": X[0]}, ValueError, "input must be [N, C, h, w]"),
        ({"weight": None}, TypeError, "weight must be a tensor, got NoneType"),
        ({"weight": W.double()}, TypeError, "weight must be torch.float32 like input, got torch.float64"),
        ({"weight": W[0]}, ValueError, "weight must be [C_out, C_in / groups, kernel_h, kernel_w], got [2, 3, 3]"),
        ({"groups": 4}, ValueError, "groups must divide C_out, and weight have C_in / groups channels, got groups=4"),
        ({"groups": True}, TypeError, "groups must be an int, got True"),
        ({"stride": 0}, ValueError, "stride must be at least 1 and below 2**31, got 0"),
        ({"dilation": (1, 2, 3)}, TypeError, "dilation must be an int or a pair of ints, got (1, 2, 3)"),
        ({"padding": -1}, ValueError, "padding must be at least 0 and below 2**31, got -1"),
        ({"padding": "full"}, ValueError, 'padding must be ints, "same" or "valid", got \'full\''),
        ({"padding": "same", "stride": 2}, ValueError, 'padding="same" must have stride 1, got (2, 2)'),
        ({"dilation": 5}, ValueError, "input must hold the dilated kernel once"),
        ({"bias": torch.zeros(5)}, ValueError, "bias must be [C_out] = [6], got [5]"),
        ({"scale": 1.0}, TypeError, "scale must be a tensor, got float"),
        ({"shift": torch.zeros(6, dtype=torch.int64)}, TypeError, "shift must be floating point, got torch.int64"),
        ({"residual": torch.zeros(1, 6, 4, 5)}, ValueError, "residual must be [1, 6, 4, 4] like the output"),
        ({"residual": torch.zeros(1, 6, 4, 4).half()}, TypeError, "residual must be torch.float32 like input"),
        ({"activation": "gelu"}, ValueError, "activation must be one of"),
        ({"activation": "prelu"}, ValueError, 'slope must be given with activation="prelu", and only then'),
        ({"slope": torch.zeros(6)}, ValueError, "and only then"),
        ({"precision": "low"}, ValueError, "precision must be one of ('default', 'fast'), got 'low'"),
        ({"weight": W.to("meta")}, ValueError, "weight must be on cpu like input, got meta"),
        ({"prepacked": 1.0}, TypeError, "prepacked must be a tensor, got float"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape("segops.dilated_conv2d: ") + ".*" + re.escape(words)):
        segops.dilated_conv2d(**{"input": X, "weight": W, "groups": 2, "backend": backend, **change})


@pytest.mark.parametrize("name", ["input", "weight", "bias", "scale", "shift", "residual", "slope", "prepacked"])
def test_tensors_of_two_devices_are_refused(name: str) -> None:
    """Also where no backend is named, which takes the shortest way to the operator."""
    channels, weight = torch.zeros(6), torch.zeros(6, 4, 3, 3)
    arguments: dict[str, Any] = {"input": X, "weight": weight, "activation": "prelu", "slope": channels}
    arguments |= {"bias": channels, "scale": channels, "shift": channels, "residual": torch.zeros(1, 6, 4, 4)}
    arguments["prepacked"] = prepack(weight)
    segops.dilated_conv2d(**arguments)
    if arguments[name] is None:
        pytest.skip("this processor has nothing to prepack")
    with pytest.raises(ValueError, match=r"segops\.dilated_conv2d: \w+ must be on \w+ like input, got "):
        segops.dilated_conv2d(**{**arguments, name: arguments[name].to("meta")})


def test_operators_refuse_what_memory_safety_needs(kernel_backend: str, device: str) -> None:
    if kernel_backend == "triton":
        pytest.skip("the binding's checks")
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    x, weight, w = torch.zeros(1, 2, 4, 6, device=device), torch.zeros(3, 2, 3, 3, device=device), [1, 1, 0, 0, 1, 1]
    nothing = (None,) * 5
    for call in (
        lambda: ops.dilated_conv2d(x, weight, *nothing, w[:5], 1, 0, False),
        lambda: ops.dilated_conv2d(x, weight, *nothing, [0, 1, 0, 0, 1, 1], 1, 0, False),
        lambda: ops.dilated_conv2d(x, weight, *nothing, w, 2, 0, False),
        lambda: ops.dilated_conv2d(x, weight, *nothing, w, 1, 6, False),
        lambda: ops.dilated_conv2d(x, weight, *nothing, w, 1, 5, False),
        lambda: ops.dilated_conv2d(x, weight, torch.zeros(2, device=device), *nothing[1:], w, 1, 0, False),
        lambda: ops.dilated_conv2d(x.long(), weight.long(), *nothing, w, 1, 0, False),
        lambda: ops.dilated_conv2d(x, weight.double(), *nothing, w, 1, 0, False),
        lambda: ops.dilated_conv2d(x[:, :, :2], weight, *nothing, w, 1, 0, False),
        lambda: ops.dilated_conv2d_grad_input(x, weight, 6, 8, w, 1, False),
        lambda: ops.dilated_conv2d_grad_input(torch.zeros(1, 3, 4, 6, device=device), weight, 7, 8, w, 1, False),
        lambda: ops.dilated_conv2d_grad_weight(x, x, weight, w, 1, False),
        lambda: ops.dilated_conv2d_grad_weight(x, torch.zeros(1, 3, 2, 4, device=device), weight, w, 2, False),
        lambda: ops.dilated_conv2d_grad_weight(x, torch.zeros(1, 3, 2, 4, device=device), weight.double(), w, 1, False),
    ):
        with pytest.raises(RuntimeError, match=r"segops.dilated_conv2d: "):
            call()
