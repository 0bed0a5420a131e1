"""dilated_conv2d on every backend: values and gradients against PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from segops.reference import dilated_conv as reference
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.tolerances import assert_near

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = reference.ACTIVATIONS


class Case(NamedTuple):
    input: tuple[int, int, int, int]
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


CASES = {
    "one pixel": Case((2, 1, 1, 1), 1, (1, 1)),
    "one pixel, padded": Case((1, 3, 1, 1), 2, padding=2, dilation=2),
    "primes": Case((2, 5, 13, 11), 7, padding=3, dilation=3),
    "stride": Case((1, 4, 12, 9), 6, stride=2, padding=1),
    "axes apart": Case((1, 3, 9, 14), 4, (2, 5), (1, 2), (1, 3), (3, 1)),
    "groups": Case((1, 6, 7, 8), 4, padding=1, groups=2),
    "depthwise": Case((2, 5, 8, 7), 5, padding=2, dilation=2, groups=5),
    "depthwise, twice": Case((1, 3, 6, 6), 6, stride=2, groups=3),
    "1x1": Case((1, 17, 5, 6), 19, (1, 1)),
    "no padding": Case((1, 2, 9, 9), 3, dilation=4),
    "more padding than kernel": Case((1, 2, 3, 4), 3, padding=4, dilation=1),
    "to one channel": Case((2, 21, 6, 37), 1, padding=(2, 1), dilation=(2, 1)),
    "to one channel, taps apart": Case((1, 3, 4, 3), 1, padding=5, dilation=4),
    "same, even kernel": Case((1, 3, 6, 7), 2, (2, 4), padding="same", dilation=(1, 1)),
}


def tensors(case: Case, dtype: torch.dtype, layout: str, device: str) -> dict[str, Tensor]:
    def made(shape: tuple[int, ...], seed: int, scale: float = 1.0, **how: Any) -> Tensor:
        return make_logits(shape, scale=scale, seed=seed, device=device, **how)

    fan_in = case.input[1] // case.groups * case.kernel[0] * case.kernel[1]
    weight_shape = (case.outputs, case.input[1] // case.groups, *case.kernel)
    x = made(case.input, 0, dtype=dtype, layout=layout)
    weight = made(weight_shape, 1, fan_in**-0.5).to(dtype)
    shape = convolve(case, x, weight).shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = {
        name: made((case.outputs,), seed).to(wide) for seed, name in enumerate(("bias", "scale", "shift", "slope"), 2)
    }
    return {"input": x, "weight": weight, **vectors, "residual": made(tuple(shape), 6, dtype=dtype, layout=layout)}


def convolve(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, case.stride, case.padding, case.dilation, case.groups)


def theirs(case: Case, activation: str | None, t: dict[str, Tensor]) -> Tensor:
    """The definition, in the dtype of its tensors."""
    x = convolve(case, t["input"], t["weight"])
    x = x + t["bias"].to(x.dtype)[:, None, None]
    x = x * t["scale"].to(x.dtype)[:, None, None] + t["shift"].to(x.dtype)[:, None, None] + t["residual"]
    if activation == "prelu":
        return F.prelu(x, t["slope"].to(x.dtype))
    return reference._FUNCTIONS[activation](x)


def ours(case: Case, activation: str | None, t: dict[str, Tensor], backend: str, **options: Any) -> Tensor:
    t = {name: value for name, value in t.items() if name != "slope" or activation == "prelu"}
    window = (case.stride, case.padding, case.dilation, case.groups)
    input, weight, bias = t.pop("input"), t.pop("weight"), t.pop("bias")
    return segops.dilated_conv2d(input, weight, bias, *window, activation=activation, backend=backend, **t, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, activation: str | None, backend: str, device: str) -> None:
    case = CASES[name]
    for dtype in DTYPES if backend != "triton" else (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            t = tensors(case, dtype, layout, device)
            actual = ours(case, activation, t, backend)
            truth = theirs(case, activation, {k: v.double() for k, v in t.items()})
            assert_near(actual, truth, theirs(case, activation, t), what=f"{name}, {dtype}, {layout}")
            assert actual.is_contiguous(
                memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
            )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["primes", "stride", "depthwise", "same, even kernel"])
def test_gradients(name: str, activation: str | None, backend: str, device: str) -> None:
    """All seven, in double precision, where a value beside a kink of the activation stays on its side."""
    case = CASES[name]
    t = {k: v.requires_grad_() for k, v in tensors(case, torch.float64, "channels_last", device).items()}
    results = []
    for function in (lambda: ours(case, activation, t, backend), lambda: theirs(case, activation, t)):
        y = function()
        upstream = make_logits(tuple(y.shape), torch.float64, seed=9, device=device)
        used = [v for k, v in t.items() if k != "slope" or activation == "prelu"]
        results.append(torch.autograd.grad(y, used, upstream))
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_a_convolution(dtype: torch.dtype, kernel_backend: str, device: str) -> None:
    for name in ("primes", "axes apart", "groups") if kernel_backend != "triton" else ("primes",):
        case = CASES[name]
        t = tensors(case, dtype, "contiguous", device)
        x, weight = t["input"], t["weight"]
        upstream = make_logits(tuple(convolve(case, x, weight).shape), dtype, seed=9, device=device)

        def gradients(kind: torch.dtype, operator: Any = None) -> tuple[Tensor, ...]:
            a, b = x.to(kind).requires_grad_(), weight.to(kind).requires_grad_()  # noqa: B023
            y = operator(a, b) if operator else convolve(case, a, b)  # noqa: B023
            return torch.autograd.grad(y, (a, b), upstream.to(kind))  # noqa: B023

        def operator(a: Tensor, b: Tensor) -> Tensor:
            return segops.dilated_conv2d(
                a,
                b,
                None,
                case.stride,  # noqa: B023
                case.padding,  # noqa: B023
                case.dilation,  # noqa: B023
                case.groups,  # noqa: B023
                backend=kernel_backend,
            )

        found = zip(gradients(dtype, operator), gradients(torch.float64), gradients(dtype), strict=True)
        for actual, truth, own in found:
            assert_near(actual, truth, own, what=name)


def test_gradient_of_taps_that_see_padding_alone(kernel_backend: str, device: str, poisoned_memory: None) -> None:
    """oneDNN's is not written there: it is what was in the memory before."""
    x = make_logits((1, 16, 1, 1), torch.bfloat16, device=device)
    weight = make_logits((2, 16, 3, 3), torch.bfloat16, seed=1, device=device).requires_grad_()
    y = segops.dilated_conv2d(x, weight, stride=(1, 2), padding=1, backend=kernel_backend)
    (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    assert gradient[:, :, 1, 1].all()
    gradient[:, :, 1, 1] = 0
    assert not gradient.any()


@pytest.mark.parametrize("activation", [None, "silu"])
def test_scale_of_what_float16_does_not_hold(activation: str | None, backend: str, device: str) -> None:
    x = (make_logits((1, 8, 6, 7), torch.float64, device=device) * 256).half()
    weight = (make_logits((3, 8, 3, 3), torch.float64, seed=2, device=device) * 64).half()
    gradients = []
    for dtype in (torch.float16, torch.float64):
        scale = torch.full((3,), 2.0**-12, device=device, requires_grad=True)
        y = segops.dilated_conv2d(x.to(dtype), weight.to(dtype), scale=scale, activation=activation, backend=backend)
        gradients.append(*torch.autograd.grad(y, scale, torch.ones_like(y)))
    assert F.conv2d(x.double(), weight.double()).abs().max() > torch.finfo(torch.float16).max
    assert torch.allclose(*gradients, rtol=1e-2)


@pytest.mark.parametrize("layout", [*LAYOUTS, *VIEWS])
def test_layouts(layout: str, kernel_backend: str, device: str) -> None:
    """Of the input, the residual and the gradient that comes back."""
    case = Case((2, 6, 7, 9), 6, padding=1)
    t = tensors(case, torch.float32, layout, device)
    t["input"].requires_grad_()
    y = ours(case, "relu", t, kernel_backend)
    expected = theirs(case, "relu", t)
    assert torch.allclose(y, expected, atol=1e-5)
    upstream = make_logits((2, 6, 7, 9), layout=layout, seed=9, device=device)
    for a, b in zip(*(torch.autograd.grad(v, t["input"], upstream) for v in (y, expected)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_weight_of_any_strides(kernel_backend: str, device: str) -> None:
    x = make_logits((1, 4, 6, 6), device=device)
    weight = make_logits((3, 4, 3, 3), device=device)
    for other in (
        weight.contiguous(memory_format=torch.channels_last),
        weight.flip(0).flip(0),
        weight[:1].expand(3, 4, 3, 3),
    ):
        y = segops.dilated_conv2d(x, other, backend=kernel_backend)
        assert torch.allclose(y, F.conv2d(x, other), atol=1e-4)
        assert y.is_contiguous()


def test_empty_batch(backend: str, device: str) -> None:
    x = torch.zeros(0, 4, 6, 6, device=device, requires_grad=True)
    weight = torch.ones(3, 4, 3, 3, device=device, requires_grad=True)
    y = segops.dilated_conv2d(x, weight, activation="relu", backend=backend)
    assert y.shape == (0, 3, 4, 4)
    grads = torch.autograd.grad(y.sum(), (x, weight))
    assert grads[0].shape == x.shape
    assert torch.equal(grads[1], torch.zeros_like(weight))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity(activation: str | None, backend: str, device: str) -> None:
    case = Case((1, 1, 1, 8), 1, (1, 1))
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 0.0, 100.0, -100.0])
    x, weight = values.view(1, 1, 1, 8).to(device), torch.ones(1, 1, 1, 1, device=device)
    slope = torch.full((1,), 0.25, device=device) if activation == "prelu" else None
    y = segops.dilated_conv2d(x, weight, activation=activation, slope=slope, backend=backend)
    expected = F.prelu(x, slope) if slope is not None else reference._FUNCTIONS[activation](convolve(case, x, weight))
    assert torch.allclose(y, expected, rtol=1e-5, equal_nan=True, atol=1e-38)


def test_every_element_is_written(kernel_backend: str, device: str, poisoned_memory: None) -> None:
    if device != "cpu":
        pytest.skip("memory is poisoned by the C library")
    for case in (CASES["axes apart"], CASES["depthwise"], Case((2, 33, 17, 19), 49, padding=2, dilation=2)):
        if kernel_backend == "triton" and case.outputs > 9:
            continue
        t = tensors(case, torch.float32, "contiguous", device)
        t["input"].requires_grad_()
        y = ours(case, "relu", t, kernel_backend)
        assert y.isfinite().all()
        assert torch.autograd.grad(y.sum(), t["input"])[0].isfinite().all()


def test_autocast(backend: str, device: str) -> None:
    x, weight = torch.randn(1, 3, 5, 5, device=device), torch.randn(2, 3, 3, 3, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = segops.dilated_conv2d(x, weight, residual=torch.ones(1, 2, 3, 3, device=device), backend=backend)
        assert y.dtype == torch.bfloat16
        assert segops.dilated_conv2d(x.double(), weight.double(), backend=backend).dtype == torch.float64
