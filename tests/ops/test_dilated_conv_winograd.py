"""dilated_conv2d where the rule chooses Winograd's algorithm on a CPU: accuracy, values not finite, threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from segops import _library
from tests.cases import make_logits
from tests.cpu import assert_threads_change_nothing, words_with_instruction_set
from tests.tolerances import assert_near

#: Input, outputs, dilation, padding: sizes that leave tiles over, channels that leave blocks over.
CASES = (
    ((2, 64, 67, 61), 80, 3, 3),
    ((2, 60, 97, 83), 75, 1, 0),
    ((2, 130, 51, 57), 90, 2, 5),
    ((1, 256, 64, 64), 256, 4, 4),
    ((3, 96, 40, 131), 96, (2, 5), (1, 4)),
)
PRECISIONS = ("default", "fast")
#: precision="fast": |error| <= this * 2^-24 * max |input| * max over outputs of sum |weight|
FAST_BOUND = 64

pytestmark = pytest.mark.skipif(
    _library.native is None or _library.native.cpu_isa() == "baseline", reason="the rule keeps ATen's convolution"
)


def operands(shape: tuple[int, ...], outputs: int, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    weight = make_logits((outputs, shape[1], 3, 3), scale=(9 * shape[1]) ** -0.5, seed=1)
    return make_logits(shape, layout=layout, scale=1.0), weight


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_default_has_the_error_of_the_vendor_library(case: tuple, layout: str) -> None:
    shape, outputs, dilation, padding = case
    x, weight = operands(shape, outputs, layout)
    residual = make_logits(tuple(F.conv2d(x, weight, None, 1, padding, dilation).shape), layout=layout, seed=2)
    results = []
    for dtype in (torch.float32, torch.float64):
        a, b = (t.to(dtype).requires_grad_() for t in (x, weight))
        y = F.conv2d(a, b, None, 1, padding, dilation)
        results.append((F.relu(y + residual), *torch.autograd.grad(y, (a, b), residual.to(dtype))))
    a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = segops.dilated_conv2d(a, b, None, 1, padding, dilation, residual=residual, activation="relu")
    plain = segops.dilated_conv2d(a, b, None, 1, padding, dilation)
    assert not torch.equal(plain, F.conv2d(x, weight, None, 1, padding, dilation)), "not Winograd's algorithm"
    for actual, own, truth in zip((y, *torch.autograd.grad(plain, (a, b), residual)), *results, strict=True):
        assert_near(actual, truth, own, what=str(case))


def fast_error(x: Tensor, weight: Tensor, dilation: int) -> float:
    """In units of the bound."""
    y = segops.dilated_conv2d(x, weight, None, 1, dilation, dilation, precision="fast")
    truth = F.conv2d(x.double(), weight.double(), None, 1, dilation, dilation)
    unit = 2.0**-24 * x.abs().max().double() * weight.abs().double().sum((1, 2, 3)).max()
    return float((y - truth).abs().max() / unit)


def test_bound_of_fast() -> None:
    for shape, outputs, dilation, _ in CASES[:4]:
        x, weight = operands(shape, outputs)
        assert fast_error(x, weight, dilation) < FAST_BOUND / 8
        # Pixels, channels and weights of 30 binary orders of magnitude, single taps, and a constant image.
        generator = torch.Generator().manual_seed(5)
        wild = x * 2.0 ** torch.randint(-30, 1, x.shape, generator=generator)
        by_channel = x * 2.0 ** torch.randint(-30, 1, (1, shape[1], 1, 1), generator=generator)
        single = torch.zeros_like(weight)
        single[:, 0, 2, 2] = 1
        for image in (wild, by_channel, x, torch.ones_like(x), x.sign()):
            for kernel in (weight, single, weight.sign(), weight * 2.0 ** torch.randint(-30, 1, weight.shape)):
                assert fast_error(image, kernel, dilation) < FAST_BOUND


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_finite_reaches_only_its_own_outputs(value: float, precision: str) -> None:
    """Transforms would spread it over a tile, and overflow before a sum does."""
    x, weight = operands((1, 64, 61, 67), 64)
    x[0, 3, 30, 31], x[0, 63, 60, 66], x[0, 5, 7, 8] = value, value, -value
    for kernel in (weight, weight[:1]):
        y = segops.dilated_conv2d(x, kernel, None, 1, 2, 2, precision=precision)
        expected = F.conv2d(x.double(), kernel.double(), None, 1, 2, 2).float()
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isinf(), expected.isinf())
        if not torch.tensor(value).isfinite():
            assert torch.allclose(y[expected.isfinite()], expected[expected.isfinite()], atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_number_of_threads_gives_the_same_bits(precision: str) -> None:
    x, weight = operands((2, 64, 61, 67), 80)
    upstream = make_logits((2, 80, 61, 67), seed=3)
    planar_and_not = (x, x.contiguous(memory_format=torch.channels_last))

    def run() -> tuple[Tensor, ...]:
        a = x.clone().requires_grad_()
        y = segops.dilated_conv2d(a, weight, None, 1, 2, 2, precision=precision)
        to_one = [segops.dilated_conv2d(image, weight[:1], None, 1, 2, 2) for image in planar_and_not]
        return y.detach(), *to_one, *torch.autograd.grad(y, a, upstream)

    assert_threads_change_nothing(run, 1, 2, 3, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (1, 1), (3, 60)])
def test_sixteen_bits_are_rounded_once(kernel: int, groups: int, dtype: torch.dtype) -> None:
    """By Winograd's algorithm, by ATen's convolution of float32 copies, and where nothing follows that."""
    x, weight = operands((2, 60, 51, 57), 60)
    x, weight = x.to(dtype), weight[:, : 60 // groups, :kernel, :kernel].to(dtype)
    bias, scale, shift = (make_logits((60,), seed=seed) for seed in (3, 4, 5))
    options = (1, kernel - 1, 2, groups)
    for layout in ("contiguous", "channels_last"):
        image = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
        residual = make_logits(
            (2, 60, *F.conv2d(x[:1, :groups], weight[:groups, :1], None, *options).shape[2:]), dtype, layout, seed=2
        )

        def theirs(kind: torch.dtype, epilogue: bool) -> Tensor:
            y = F.conv2d(x.to(kind), weight.to(kind), bias.to(kind) if epilogue else None, *options)
            if not epilogue:
                return y
            return F.relu(y * scale.to(kind)[:, None, None] + shift.to(kind)[:, None, None] + residual.to(kind))  # noqa: B023

        rest = {"scale": scale, "shift": shift, "residual": residual, "activation": "relu"}
        for y, epilogue in (
            (segops.dilated_conv2d(image, weight, bias, *options, **rest), True),
            (segops.dilated_conv2d(image, weight, None, *options), False),
        ):
            truth, accumulated = theirs(torch.float64, epilogue), theirs(torch.float32, epilogue)
            assert_near(y, truth, accumulated.to(dtype), accumulated, what=f"{layout}, {epilogue}")


#: What the cost rule chooses where the choices are far apart: input, dilation, and the layout of ATen's image.
ATEN = {
    "v4": (
        ((1, 512, 7, 7), 1, "contiguous"),
        ((1, 256, 14, 14), 1, "contiguous"),
        ((1, 1024, 14, 14), 2, "contiguous"),
        ((1, 3, 129, 129), 1, "contiguous"),
        ((1, 256, 14, 14), 16, "channels_last"),
        ((1, 256, 33, 33), 12, "channels_last"),
    ),
    "v3": (
        ((1, 3, 129, 129), 1, "contiguous"),
        ((1, 3, 257, 257), 4, "contiguous"),
        ((1, 256, 14, 14), 16, "channels_last"),
        ((1, 256, 33, 33), 12, "channels_last"),
    ),
}
WINOGRAD = (
    ((1, 16, 33, 33), 1),
    ((1, 32, 33, 33), 8),
    ((1, 64, 65, 65), 2),
    ((1, 128, 33, 33), 4),
    ((1, 3, 14, 14), 1),
)


@pytest.mark.parametrize("level", ["v3", "v4"])
def test_rule(level: str) -> None:
    """Of each instruction set that the processor has."""
    assert _library.native is not None
    if level not in _library.native.cpu_isas():
        pytest.skip(f"this processor does not run {level}")
    words_with_instruction_set(level, "-c", f"import {__name__} as here; here.check_rule()")


def check_rule() -> None:
    assert _library.native is not None
    for shape, dilation, layout in ATEN[_library.native.cpu_isa()]:
        x, weight = operands(shape, shape[1])
        options = (None, 1, dilation, dilation)
        image = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
        y = segops.dilated_conv2d(x, weight, *options)
        assert y.is_contiguous()
        assert torch.equal(y, F.conv2d(image, weight, *options)), (shape, dilation)
    for shape, dilation in WINOGRAD:
        x, weight = operands(shape, shape[1])
        options = (None, 1, dilation, dilation)
        y = segops.dilated_conv2d(x, weight, *options)
        for image in (x, x.contiguous(memory_format=torch.channels_last)):
            assert not torch.equal(y, F.conv2d(image, weight, *options)), (shape, dilation)
    # To one channel, by the definition where vectors are full.
    x, weight = operands((1, 64, 40, 40), 1)
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        assert not torch.equal(segops.dilated_conv2d(image, weight), F.conv2d(image, weight))
    image, kernel = x[:, :15].contiguous(memory_format=torch.channels_last), weight[:, :15].contiguous()
    assert torch.equal(segops.dilated_conv2d(image, kernel), F.conv2d(image, kernel))
    for options in ({"stride": 2}, {"groups": 2}):
        x, weight = operands((1, 64, 64, 64), 64)
        weight = weight[:, : 64 // options.get("groups", 1)].contiguous()
        assert torch.equal(segops.dilated_conv2d(x, weight, **options), F.conv2d(x, weight, **options))
