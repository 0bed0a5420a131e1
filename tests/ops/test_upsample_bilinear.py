"""upsample_bilinear2d and upsample_cat on every backend: values and gradients against PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

import segops
from segops import backends
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.cpu import assert_threads_change_nothing
from tests.tolerances import compare

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CORNERS = pytest.mark.parametrize("align_corners", [False, True], ids=["centers", "corners"])

#: Shape and what says the size: one pixel, whole and broken scales up and down, rows that fill vectors and that do not.
CASES: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "one pixel": ((2, 3, 1, 1), {"size": (5, 7)}),
    "to one pixel": ((1, 2, 7, 5), {"size": 1}),
    "same": ((1, 3, 5, 7), {"size": (5, 7)}),
    "x2": ((2, 3, 6, 16), {"scale_factor": 2}),
    "x2, wide": ((1, 2, 3, 67), {"scale_factor": 2.0}),
    "x3 and x5": ((1, 2, 3, 33), {"scale_factor": (3, 5)}),
    "x4": ((1, 19, 4, 8), {"scale_factor": 4}),
    "x8": ((1, 5, 3, 9), {"scale_factor": 8}),
    "x17 in one direction": ((1, 1, 2, 11), {"scale_factor": (1, 17)}),
    "x1.5": ((1, 4, 5, 37), {"scale_factor": 1.5}),
    "scale beside the size": ((1, 2, 6, 9), {"scale_factor": (2.3, 1.3)}),
    "scale that keeps a size": ((1, 2, 10, 6), {"scale_factor": (1.05, 2.1)}),
    "scale that keeps both sizes": ((1, 2, 10, 12), {"scale_factor": 1.05}),
    "primes": ((2, 3, 7, 31), {"size": (13, 47)}),
    "down, half": ((1, 3, 8, 64), {"scale_factor": 0.5}),
    "down, a third": ((1, 2, 9, 97), {"scale_factor": 0.34}),
    "down and up": ((1, 2, 9, 5), {"size": (4, 40)}),
    "many channels": ((1, 70, 3, 3), {"size": (5, 6)}),
    "a column": ((2, 3, 11, 1), {"size": (37, 1)}),
}


interpolate = partial(F.interpolate, mode="bilinear")


def eighths(shape: tuple[int, ...], layout: str = "contiguous", device: str = "cpu") -> Tensor:
    """An upstream gradient that is the same number in every dtype."""
    return (make_logits(shape, layout=layout, seed=1, device=device) * 8).round() / 8


@CORNERS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str, layout: str, align_corners: bool, backend: str, device: str) -> None:
    if name == "scale that keeps a size" and device != "cpu":
        pytest.skip("torch ignores such a scale on CPUs only; segops does on every device")
    shape, how = CASES[name]
    options = {**how, "align_corners": align_corners}
    for dtype in DTYPES:
        x = make_logits(shape, dtype, layout, device=device)
        ours = partial(segops.upsample_bilinear2d, backend=backend, **options)
        upstream = eighths(tuple(interpolate(x, **options).shape), layout, device)
        compare(
            ours, partial(interpolate, **options), x, upstream=upstream, gradient_scale=1.0, what=f"{name}, {dtype}"
        )


@pytest.mark.parametrize("layout", [*LAYOUTS, *VIEWS])
def test_layouts(layout: str, kernel_backend: str, device: str) -> None:
    """Of the input, and of the gradient that comes back."""
    for dtype in (torch.float32, torch.bfloat16):
        for size in ((10, 18), (7, 5)):
            x = make_logits((2, 5, 5, 9), dtype, layout, device=device)
            ours = partial(segops.upsample_bilinear2d, size=size, backend=kernel_backend)
            upstream = eighths((2, 5, *size), layout, device)
            compare(ours, partial(interpolate, size=size), x, upstream=upstream, gradient_scale=1.0, what=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_all_widths(layout: str, kernel_backend: str, device: str) -> None:
    """Each vector width and tail, in both directions, of the scales that have code of their own and of others."""
    widths = (1, 2, 3, 7, 8, 15, 16, 17, 33, 65) if kernel_backend != "triton" else (3, 16)
    for width in widths:
        for times in (2, 3, 4, 8, 1.3):
            for channels in (1, 3, 8, 17) if layout == "channels_last" else (2,):
                size = (5, int(width * times))
                x = make_logits((1, channels, 3, width), layout=layout, device=device)
                compare(
                    partial(segops.upsample_bilinear2d, size=size, backend=kernel_backend),
                    partial(interpolate, size=size),
                    x,
                    upstream=eighths((1, channels, *size), layout, device),
                    gradient_scale=1.0,
                    what=f"{width} columns to {size[1]}, {channels} channels",
                )


@pytest.mark.parametrize("order", ["skip_first", "up_first"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice", "sliced"])
def test_cat(layout: str, order: str, backend: str, device: str) -> None:
    for index, (shape, more, size) in enumerate(
        (((2, 3, 4, 5), 4, (8, 10)), ((1, 1, 7, 3), 1, (13, 8)), ((1, 8, 2, 2), 5, (2, 1)))
    ):
        for dtype in DTYPES:
            align_corners = index == 1
            x = make_logits(shape, dtype, layout, device=device)
            skip = make_logits((shape[0], more, *size), dtype, layout, seed=2, device=device)

            def theirs(x: Tensor) -> Tensor:
                up = interpolate(x, size=skip.shape[2:], align_corners=align_corners)  # noqa: B023
                beside = skip.to(x.dtype)  # noqa: B023
                return torch.cat([beside, up] if order == "skip_first" else [up, beside], 1)

            ours = partial(segops.upsample_cat, skip=skip, align_corners=align_corners, order=order, backend=backend)
            upstream = eighths((shape[0], shape[1] + more, *size), layout, device)
            compare(ours, theirs, x, upstream=upstream, gradient_scale=1.0, what=f"{shape}, {dtype}")
            # The skip connection is moved bit for bit, there and back.
            skip = skip.detach().requires_grad_()
            output = segops.upsample_cat(x, skip, align_corners, order, backend=backend)
            part = slice(0, more) if order == "skip_first" else slice(shape[1], None)
            assert torch.equal(output[:, part], skip)
            (gradient,) = torch.autograd.grad(output, skip, upstream.to(dtype))
            assert torch.equal(gradient, upstream.to(dtype)[:, part])


def test_cat_promotes(backend: str, device: str) -> None:
    for first, second in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float16, torch.bfloat16),
    ):
        x = make_logits((1, 2, 3, 4), first, device=device).requires_grad_()
        skip = make_logits((1, 3, 5, 6), second, device=device).requires_grad_()
        output = segops.upsample_cat(x, skip, backend=backend)
        assert output.dtype == torch.float32
        assert torch.equal(output[:, :3], skip.float())
        gradients = torch.autograd.grad(output.sum(), (x, skip))
        assert [g.dtype for g in gradients] == [first, second]


def test_half_weights_are_exact(kernel_backend: str, device: str) -> None:
    """Where the corners coincide and sizes are 2^k + 1, weights are quarters: sums of small integers are exact."""
    x = torch.arange(2 * 3 * 5, dtype=torch.float32, device=device).view(1, 2, 3, 5)
    output = segops.upsample_bilinear2d(x, (9, 17), align_corners=True, backend=kernel_backend)
    assert torch.equal(output[..., ::4, ::4], x)
    assert torch.equal(output[..., ::4, 1::4], (x[..., :-1] * 3 + x[..., 1:]) / 4)
    assert torch.equal(output[..., 2::4, ::4], (x[:, :, :-1] + x[:, :, 1:]) / 2)


def test_empty_batch(backend: str, device: str) -> None:
    x = torch.zeros(0, 3, 4, 5, device=device, requires_grad=True)
    skip = torch.zeros(0, 2, 8, 10, device=device, requires_grad=True)
    output = segops.upsample_cat(x, skip, backend=backend)
    assert output.shape == (0, 5, 8, 10)
    up = segops.upsample_bilinear2d(x, (8, 10), backend=backend)
    gradients = torch.autograd.grad(output.sum() + up.sum(), (x, skip))
    assert [tuple(g.shape) for g in gradients] == [tuple(x.shape), tuple(skip.shape)]


def test_special_values_reach_the_pixels_that_read_them(backend: str, device: str) -> None:
    x = torch.zeros(1, 1, 4, 16, device=device)
    x[0, 0, 2, 7], x[0, 0, 0, 0] = float("nan"), float("inf")
    output = segops.upsample_bilinear2d(x, scale_factor=2, backend=backend)
    rows, columns = output.isnan()[0, 0].nonzero(as_tuple=True)
    assert {3, 4, 5, 6} >= set(rows.tolist()) >= {4, 5}
    assert {13, 14, 15, 16} >= set(columns.tolist()) >= {14, 15}
    assert output[0, 0, 0, 0] == float("inf")
    grad = torch.ones(1, 1, 8, 32, device=device)
    grad[0, 0, 3, 9] = float("nan")
    y = torch.zeros(1, 1, 4, 16, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(segops.upsample_bilinear2d(y, scale_factor=2, backend=backend), y, grad)
    assert sorted(gradient.isnan().nonzero()[:, 2:].tolist()) == [[1, 4], [1, 5], [2, 4], [2, 5]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_channel_slice", "transposed"])
def test_memory_format_follows_the_input(layout: str, backend: str, device: str) -> None:
    for shape in ((2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 1, 1), (2, 3, 4, 1)):
        x = make_logits(shape, layout=layout, device=device)
        output = segops.upsample_bilinear2d(x, scale_factor=2, backend=backend)
        if backend != "reference":  # whose strides of a single channel may be either
            assert output.stride() == F.interpolate(x, scale_factor=2, mode="nearest").stride()
        skip = make_logits((shape[0], 2, 2 * shape[2], 2 * shape[3]), device=device)
        for result in (output, segops.upsample_cat(x, skip, backend=backend)):
            assert result.is_contiguous(memory_format=suggest_memory_format(x))


def test_nothing_of_old_memory_is_left(kernel_backend: str, poisoned_memory: None, device: str) -> None:
    x = torch.randn(1, 3, 5, 6, device=device)
    for view in (x, x.to(memory_format=torch.channels_last)):
        assert not segops.upsample_bilinear2d(view, (11, 13), backend=kernel_backend).isnan().any()
        y = view.detach().requires_grad_()
        # Downwards most inputs have no output that reads them, and their gradient is zero.
        (gradient,) = torch.autograd.grad(segops.upsample_bilinear2d(y, (1, 2), backend=kernel_backend).sum(), y)
        assert 0 < gradient.count_nonzero() < gradient.numel()
        assert not gradient.isnan().any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_bits_on_any_number_of_threads(channels_last: bool, device: str) -> None:
    """Several items of work, and the stores past the caches: once on fresh memory, once on memory used before."""
    if device != "cpu":
        pytest.skip("threads and caches of a CPU")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 19, 65, 67).contiguous(memory_format=memory_format).requires_grad_()
    upstream = torch.randn(2, 19, 520, 536).contiguous(memory_format=memory_format)

    def run() -> tuple[Tensor, ...]:
        output = segops.upsample_bilinear2d(x, scale_factor=8)
        return output.detach(), *torch.autograd.grad(output, x, upstream)

    assert_threads_change_nothing(run, 1, 2, 3, 1)
    compare(
        partial(segops.upsample_bilinear2d, scale_factor=8),
        partial(interpolate, scale_factor=8),
        x.detach(),
        upstream=upstream,
        what="large",
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_follows_the_input(dtype: torch.dtype, device: str) -> None:
    x, skip = torch.randn(1, 2, 3, 4, device=device), torch.randn(1, 2, 6, 8, device=device)
    with torch.autocast(device, dtype=dtype):
        for given in (torch.float32, dtype):
            assert segops.upsample_bilinear2d(x.to(given), scale_factor=2).dtype == given
        assert segops.upsample_cat(x.to(dtype), skip).dtype == torch.float32


def test_operators_stay_inside_whatever_the_scale(kernel_backend: str, device: str) -> None:
    """Called directly, with scales that do not belong to the sizes: beyond the image lies its last pixel."""
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    x = torch.arange(12.0, device=device).view(1, 1, 3, 4)
    for scale in (1e-30, 5e-324, float("inf"), float("nan"), -1.0):
        output = ops.upsample_bilinear2d(x, 5, 9, False, scale, scale)
        assert ((output >= 0) & (output <= 11)).all()
        if scale < 1:
            assert (output[..., -1, -1] == 11).all()
        gradient = ops.upsample_bilinear2d_backward(output, 3, 4, False, scale, scale)
        assert torch.isclose(gradient.sum(), output.sum())


def test_operators_read_gradients_where_they_are(kernel_backend: str, device: str) -> None:
    """A slice of the channels of a larger gradient, planar and channels last, gives the bits of its copy."""
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    for layout in ("channel_slice", "channels_last_channel_slice"):
        grad = make_logits((2, 5, 8, 12), layout=layout, device=device)
        assert not grad.is_contiguous()
        mapping = (4, 6, False, 0.0, 0.0)
        of_copy = ops.upsample_bilinear2d_backward(grad.clone(memory_format=torch.preserve_format), *mapping)
        assert torch.equal(ops.upsample_bilinear2d_backward(grad, *mapping), of_copy)
