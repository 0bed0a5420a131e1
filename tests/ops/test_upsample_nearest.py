"""upsample_nearest2d and bed_of_nails2d on every backend: the elements, bit for bit, and the sums of the gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from segops import backends
from segops.ops.upsample_arguments import output_geometry
from segops.reference import upsample_nearest as reference
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.cpu import threads
from tests.tolerances import BITS, bits

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Shape, size, scale_factor: one pixel, whole and broken scales up and down, rows that fill vectors and that do not.
CASES: dict[str, tuple[tuple[int, ...], int | tuple[int, int] | None, float | tuple[float, float] | None]] = {
    "one pixel": ((2, 3, 1, 1), (5, 7), None),
    "to one pixel": ((1, 2, 7, 5), 1, None),
    "same": ((1, 3, 5, 7), (5, 7), None),
    "x2": ((2, 3, 4, 16), None, 2),
    "x2, small": ((1, 5, 3, 4), None, 2.0),
    "x2, wide": ((1, 1, 2, 67), None, 2),
    "x3 and x5": ((1, 2, 3, 33), None, (3, 5)),
    "x4": ((1, 19, 4, 8), None, 4),
    "x17": ((1, 1, 2, 11), None, (1, 17)),
    "x1.5": ((1, 4, 5, 37), None, 1.5),
    "scale beside the size": ((1, 2, 6, 9), None, (2.3, 1.3)),
    "twice the size, but not the scale": ((1, 2, 6, 9), None, 2.05),
    "primes": ((2, 3, 7, 31), (13, 47), None),
    "down, half": ((1, 3, 8, 64), None, 0.5),
    "down, a third": ((1, 2, 9, 97), None, 0.34),
    "down and up": ((1, 2, 9, 5), (4, 40), None),
    "many channels": ((1, 70, 3, 3), (5, 6), None),
    "no images": ((0, 3, 4, 5), (8, 10), None),
}
SCALES = (1, 2, 3, 4, 9)
NAILS_SHAPES = ((1, 1, 1, 1), (2, 3, 4, 16), (1, 5, 3, 7), (1, 33, 2, 5), (0, 2, 3, 4))


def summed(grad: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Each input's gradient, added up one by one in row-major order."""
    accumulate = torch.float64 if grad.dtype == torch.float64 else torch.float32
    places = (rows[:, None] * width + columns).flatten().numpy()
    n, c = grad.shape[:2]
    addends = grad.cpu().to(accumulate).contiguous().reshape(n * c, len(places))
    sums = np.zeros((height * width, n * c), dtype=addends.numpy().dtype)
    np.add.at(sums, places, addends.T.numpy())
    return torch.from_numpy(sums.T.reshape(n, c, height, width).copy()).to(grad.device, grad.dtype)


def expect_sums(x: Tensor, geometry: Sequence[float], grad: Tensor) -> Tensor:
    height, width, scale_h, scale_w = geometry
    rows = reference.source(x.shape[2], int(height), scale_h)
    columns = reference.source(x.shape[3], int(width), scale_w)
    return summed(grad, rows, columns, x.shape[2], x.shape[3])


@pytest.mark.parametrize("layout", [*LAYOUTS, *VIEWS])
@pytest.mark.parametrize("name", CASES)
def test_elements_and_gradient(name: str, layout: str, backend: str, device: str) -> None:
    shape, size, scale = CASES[name]
    dtype = DTYPES[(list(CASES).index(name) + [*LAYOUTS, *VIEWS].index(layout)) % 4]
    x = make_logits(shape, dtype, layout, device=device).requires_grad_()
    output = segops.upsample_nearest2d(x, size, scale, backend=backend)
    geometry = output_geometry("upsample_nearest2d", shape, size, scale)
    expected = reference.upsample_nearest2d(x.detach(), *geometry)
    assert torch.equal(output, expected)
    for grad_layout in ("contiguous", "channels_last", "channels_last_channel_slice"):
        grad = make_logits(tuple(output.shape), dtype, grad_layout, seed=1, device=device)
        (gradient,) = torch.autograd.grad(output, x, grad, retain_graph=True)
        if backend == "reference":
            tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 200 * torch.finfo(dtype).eps}
            assert torch.allclose(gradient, expect_sums(x, geometry, grad), **tolerance)
        else:
            assert torch.equal(gradient, expect_sums(x, geometry, grad))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_all_widths_and_dtypes(layout: str, dtype: torch.dtype, kernel_backend: str, device: str) -> None:
    """Each vector width and tail, of both directions."""
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    widths = (1, 2, 3, 4, 7, 8, 15, 16, 17, 32, 33, 65) if kernel_backend != "triton" else (3, 16)
    for width, times in itertools.product(widths, (2, 3, 4, 1.3)):
        for channels in (1, 3, 8, 17) if layout == "channels_last" else (2,):
            out = int(width * times)
            x = make_logits((1, channels, 2, width), dtype, layout, device=device)
            up = ops.upsample_nearest2d(x, 4, out, 0.0, 0.0)
            assert torch.equal(up, reference.upsample_nearest2d(x, 4, out, 0.0, 0.0))
            grad = make_logits((1, channels, 4, out), dtype, layout, device=device)
            down = ops.upsample_nearest2d_backward(grad, 2, width, 0.0, 0.0)
            assert torch.equal(down, expect_sums(x, (4, out, 0.0, 0.0), grad)), (width, times, channels)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_same_bits_as_torch(dtype: torch.dtype, channels_last: bool, device: str) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for extent in (1, 2, 3, 5, 8, 13, 21, 45):
        x = torch.randn(1, 5, 2, extent, device=device).to(dtype).contiguous(memory_format=memory_format)
        for out in (1, 2, 3, 7, 16, 31, 64, 129):
            assert torch.equal(segops.upsample_nearest2d(x, (3, out)), F.interpolate(x, (3, out), mode="nearest"))
        for scale in (1.0, 1.3, 1.9, 2.0, 2.7, 3.3, 4.0):
            # Where a scale gives exactly the size or twice the size, torch's own kernels disagree on the sources.
            if scale not in (1.0, 2.0) and int(extent * scale) in (extent, 2 * extent):
                continue
            expected = F.interpolate(x, scale_factor=(2.0, scale), mode="nearest")
            assert torch.equal(segops.upsample_nearest2d(x, scale_factor=(2.0, scale)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_are_moved_as_they_are(dtype: torch.dtype, kernel_backend: str, device: str) -> None:
    """Signalling NaN, subnormal numbers and negative zero among them: every pattern of 16 bits."""
    patterns = torch.arange(-(1 << 15), 1 << 15).view(1, 2, 128, 256)[:, :, :: 8 if kernel_backend == "triton" else 1]
    x = patterns.to(BITS[dtype.itemsize]).mul(1 << (8 * dtype.itemsize - 16)).view(dtype).to(device)
    output = segops.upsample_nearest2d(x, scale_factor=2, backend=kernel_backend)
    expected = bits(x).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(bits(output), expected)
    nails = segops.bed_of_nails2d(x, 2, backend=kernel_backend)
    assert torch.equal(bits(nails[..., ::2, ::2]), bits(x))
    assert not bits(nails[..., 1::2]).any()


@pytest.mark.parametrize("layout", [*LAYOUTS, *VIEWS])
@pytest.mark.parametrize("shape", NAILS_SHAPES, ids=str)
def test_bed_of_nails(shape: tuple[int, ...], layout: str, backend: str, device: str) -> None:
    for index, scale in enumerate(SCALES):
        dtype = DTYPES[index % 4]
        x = make_logits(shape, dtype, layout, device=device).requires_grad_()
        output = segops.bed_of_nails2d(x, scale, backend=backend)
        assert torch.equal(output, reference.bed_of_nails2d(x.detach(), scale))
        for grad_layout in ("contiguous", "channels_last"):
            grad = make_logits(tuple(output.shape), dtype, grad_layout, seed=1, device=device)
            (gradient,) = torch.autograd.grad(output, x, grad, retain_graph=True)
            assert torch.equal(gradient, grad[..., ::scale, ::scale])


def test_nothing_of_old_memory_is_left(kernel_backend: str, poisoned_memory: None, device: str) -> None:
    x = torch.randn(1, 3, 4, 5, device=device)
    for view in (x, x.to(memory_format=torch.channels_last)):
        assert not segops.bed_of_nails2d(view, 3, backend=kernel_backend).isnan().any()
        # Downwards most inputs have no output, and their gradient is zero.
        x0 = view.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(segops.upsample_nearest2d(x0, (2, 2), backend=kernel_backend).sum(), x0)
        assert gradient.count_nonzero() == 3 * 4


def test_special_values_reach_only_their_input(kernel_backend: str, device: str) -> None:
    grad = torch.ones(1, 1, 8, 32, device=device)
    grad[0, 0, 3, 9], grad[0, 0, 5, 20] = float("nan"), float("inf")
    x = torch.zeros(1, 1, 4, 16, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(segops.upsample_nearest2d(x, scale_factor=2, backend=kernel_backend), x, grad)
    assert gradient.isnan().nonzero().tolist() == [[0, 0, 1, 4]]
    assert gradient.isinf().nonzero().tolist() == [[0, 0, 2, 10]]
    assert (gradient.nan_to_num(4.0, 4.0) == 4).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_channel_slice", "transposed"])
def test_memory_format_follows_the_input(layout: str, kernel_backend: str, device: str) -> None:
    for shape in ((2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 1, 1), (2, 3, 4, 1)):
        x = make_logits(shape, layout=layout, device=device)
        theirs = F.interpolate(x, scale_factor=2, mode="nearest")
        assert segops.upsample_nearest2d(x, scale_factor=2, backend=kernel_backend).stride() == theirs.stride()
        assert segops.bed_of_nails2d(x, 2, backend=kernel_backend).stride() == theirs.stride()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_large_images_on_any_number_of_threads(number: int, device: str) -> None:
    """Several items of work, and the stores past the caches: once on fresh memory, once on memory used before."""
    if device != "cpu":
        pytest.skip("threads and caches of a CPU")
    with threads(number):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 16, 192, 320).contiguous(memory_format=memory_format)
            assert torch.equal(segops.upsample_nearest2d(x, scale_factor=2), F.interpolate(x, scale_factor=2))
            nails = segops.bed_of_nails2d(x, 3)
            assert torch.equal(nails[..., ::3, ::3], x)
            assert nails.count_nonzero() == x.count_nonzero()
