"""max_pool2d and max_unpool2d on every backend: maxima, winners, where values go, and gradients, element by element."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import segops
from segops import backends, errors
from segops.ops.max_unpool_arguments import window_of
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.cpu import threads
from tests.ops.max_unpool_cases import (
    CASES,
    FLOATS,
    INTEGERS,
    Case,
    gathered,
    latest,
    random_indices,
    summed,
    unpooled,
)
from tests.tolerances import bits

INF, NAN = float("inf"), float("nan")
EVERY_LAYOUT = [*LAYOUTS, *VIEWS]


def with_specials(x: Tensor) -> Tensor:
    """NaN and infinities in every third of the elements, whole windows of -inf among them."""
    generator = torch.Generator().manual_seed(3)
    kind = torch.randint(0, 12, x.shape, generator=generator).to(x.device)
    for which, value in ((0, NAN), (1, INF), (2, -INF)):
        x = torch.where(kind == which, value, x)
    x[..., : x.shape[-2] // 2, : x.shape[-1] // 2] = -INF
    return x


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@pytest.mark.parametrize("name", CASES)
def test_pool(name: str, layout: str, backend: str, device: str) -> None:
    """Maxima and winners are torch's bit for bit; the gradient is the sum over the windows in row-major order."""
    case = CASES[name]
    dtype = FLOATS[(list(CASES).index(name) + EVERY_LAYOUT.index(layout)) % 4]
    x = make_logits(case.shape, dtype, layout, device=device).requires_grad_()
    output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode, backend=backend)
    expected, flat = case.pool(x.detach())
    assert torch.equal(output, expected)
    assert torch.equal(segops.local_to_flat_indices(indices, case.shape[2:], *case.sizes), flat)
    assert (output.dtype, indices.dtype, indices.requires_grad) == (dtype, torch.uint8, False)
    grad = make_logits(tuple(output.shape), dtype, "channels_last", seed=1, device=device)
    (gradient,) = torch.autograd.grad(output, x, grad)
    expected = summed(grad.cpu(), flat.cpu(), *case.shape[2:]).to(device)
    if backend == "reference":
        torch.testing.assert_close(gradient, expected)
    else:
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("name", CASES)
def test_winners_of_ties_and_special_values(name: str, backend: str, device: str) -> None:
    """The first maximum, the last NaN, also where all of a window is -inf."""
    case = CASES[name]
    few = torch.randint(0, 3, case.shape, generator=torch.Generator().manual_seed(2)).to(device).float()
    kinds = (few, with_specials(few), torch.full_like(few, -INF), torch.full_like(few, NAN))
    # Triton's interpreter takes a second and more for windows of 256 elements.
    for x in kinds[1:3] if backend == "triton" and name == "256 taps" else kinds:
        for image in (x, x.to(memory_format=torch.channels_last)):
            output, indices = segops.max_pool2d(image, *case.sizes, case.ceil_mode, backend=backend)
            expected, flat = case.pool(image)
            assert torch.equal(output.isnan(), expected.isnan())
            assert torch.equal(output.nan_to_num(7.5), expected.nan_to_num(7.5))
            assert torch.equal(segops.local_to_flat_indices(indices, case.shape[2:], *case.sizes), flat)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", ["2x2, odd, ceil", "3x3 s2, a ResNet's", "dilated", "256 taps"])
def test_integers(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    case, limits = CASES[name], torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(limits.min, limits.max, case.shape, dtype=dtype, generator=generator).to(device)
    for edge in (limits.min, limits.max):
        x[..., :2, ::2] = edge
        output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode, backend=backend)
        expected, flat = case.pool(x)
        assert torch.equal(output, expected)
        assert torch.equal(segops.local_to_flat_indices(indices, case.shape[2:], *case.sizes), flat)
        for where in (indices, flat):
            back = segops.max_unpool2d(output, where, *case.sizes, case.shape[2:], backend=backend)
            assert torch.equal(back, unpooled(output.cpu(), flat.cpu(), *case.shape[2:]).to(device))


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@pytest.mark.parametrize("name", CASES)
def test_unpool(name: str, layout: str, backend: str, device: str) -> None:
    """Any indices, so that overlapping windows disagree: the latest stands, in value and (uint8) in gradient."""
    case = CASES[name]
    height, width = case.shape[2:]
    dtype = FLOATS[(list(CASES).index(name) + EVERY_LAYOUT.index(layout)) % 4]
    local, flat, size = random_indices(case)
    x = make_logits((*case.shape[:2], *size), dtype, layout, device=device).requires_grad_()
    expected = unpooled(x.detach().cpu(), flat, height, width)
    grad = make_logits(tuple(expected.shape), dtype, "channels_last_channel_slice", seed=1, device=device)
    picked = gathered(grad.cpu(), flat)
    local, flat = local.to(device), flat.to(device)
    for indices, gradient in ((local, picked * latest(flat.cpu(), height, width)), (flat, picked)):
        for places in (indices, indices.to(memory_format=torch.channels_last)):
            output = segops.max_unpool2d(x, places, *case.sizes, (height, width), backend=backend)
            assert torch.equal(output, expected.to(device))
            (actual,) = torch.autograd.grad(output, x, grad)
            assert torch.equal(actual, gradient.to(device))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_channel_slice", "transposed"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 1, 4, 6), (2, 3, 2, 2), (1, 1, 2, 2), (2, 3, 4, 2)], ids=str)
def test_memory_format_follows_the_input(shape: tuple[int, ...], layout: str, kernel_backend: str, device: str) -> None:
    x = make_logits(shape, layout=layout, device=device)
    output, indices = segops.max_pool2d(x, 2, backend=kernel_backend)
    expected = F.interpolate(x, size=(shape[2] // 2, shape[3] // 2))
    assert output.stride() == indices.stride() == expected.stride()
    y = make_logits(tuple(output.shape), layout=layout, device=device)
    for where in (indices, segops.local_to_flat_indices(indices, shape[2:], 2)):
        back = segops.max_unpool2d(y, where, 2, output_size=shape[2:], backend=kernel_backend)
        assert back.stride() == F.interpolate(y, size=shape[2:]).stride()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_bits_are_moved_as_they_are(dtype: torch.dtype, kernel_backend: str, device: str) -> None:
    """Signalling NaN, subnormal numbers and negative zero among them."""
    size = min(dtype.itemsize, 2) * 8
    count = 1 << (size if kernel_backend != "triton" else 8)
    patterns = torch.arange(count) * ((1 << size) // count)
    x = (patterns << (8 * dtype.itemsize - size)).to(bits(torch.empty(1, dtype=dtype)).dtype)
    x = x.view(dtype).view(1, 2, 8, -1).to(device)
    for image in (x, x.to(memory_format=torch.channels_last)):
        local = (torch.arange(image[0].numel()).view(image.shape) % 4).to(torch.uint8).to(device)
        flat = segops.local_to_flat_indices(local, (16, 2 * x.shape[3]), 2)
        for indices in (local, flat):
            output = segops.max_unpool2d(image, indices, 2, backend=kernel_backend)
            assert torch.equal(gathered(bits(output), flat), bits(image))
            assert output.view(bits(x).dtype).count_nonzero() == bits(x).count_nonzero()


@pytest.mark.parametrize("accumulate", [False, True])
def test_sums_and_special_values(accumulate: bool, kernel_backend: str, device: str) -> None:
    """Infinity and NaN reach only the element they point at; sums start at zero and go in row-major order."""
    case = Case((1, 9, 7, 9), 3, 2, 1)
    local, flat, size = random_indices(case)
    x = with_specials(make_logits((1, 9, *size)))
    expected = (summed if accumulate else unpooled)(x, flat, 7, 9)
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    window = window_of("max_unpool2d", *case.sizes)
    for image in (x.to(device), x.to(device).to(memory_format=torch.channels_last)):
        output, _ = ops.max_unpool2d(image, local.to(device), 7, 9, window, accumulate, errors.RECORD)
        torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=0, equal_nan=True, check_stride=False)
        output, _ = ops.max_unpool2d_flat(image, flat.to(device), 7, 9, accumulate, errors.RECORD)
        torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=0, equal_nan=True, check_stride=False)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_flat_indices_may_be_any(dtype: torch.dtype, backend: str, device: str) -> None:
    """Many duplicates, anywhere in the plane: torch's output and torch's gradient."""
    generator = torch.Generator().manual_seed(5)
    for shape, size in (
        ((2, 3, 5, 7), (5, 8)),
        ((1, 2, 9, 33), (9, 33)),
        ((1, 17, 3, 4), (50, 60)),
        ((1, 1, 1, 1), (1, 1)),
    ):
        flat = torch.randint(0, size[0] * size[1] // 2 + 1, shape, generator=generator).to(device)
        for layout in ("contiguous", "channels_last"):
            x = make_logits(shape, dtype, layout, device=device).requires_grad_()
            # Sizes are checked as torch does, within a stride of the default; flat indices need no windows otherwise.
            kernel = tuple(max(a - b + 1, 1) for a, b in zip(size, shape[2:], strict=True))
            output = segops.max_unpool2d(x, flat, kernel, 1, output_size=size, backend=backend)
            assert torch.equal(output, unpooled(x.detach().cpu(), flat.cpu(), *size).to(device))
            grad = make_logits(tuple(output.shape), dtype, layout, seed=1, device=device)
            (gradient,) = torch.autograd.grad(output, x, grad)
            assert torch.equal(gradient, gathered(grad, flat))


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, backend: str, device: str) -> None:
    """unpool(pool(x)) is x at the winners and zero elsewhere, for pooling in either mode of rounding."""
    case = CASES[name]
    for ceil_mode in (False, True):
        x = make_logits(case.shape, device=device)
        if name == "one pixel, ceil" and not ceil_mode:
            continue
        output, indices = segops.max_pool2d(x, *case.sizes, ceil_mode, backend=backend)
        back = segops.max_unpool2d(output, indices, *case.sizes, output_size=x.shape, backend=backend)
        flat = segops.local_to_flat_indices(indices, case.shape[2:], *case.sizes)
        is_winner = unpooled(torch.ones_like(output).cpu(), flat.cpu(), *case.shape[2:]).to(device) != 0
        assert torch.equal(back, torch.where(is_winner, x, 0))
        assert torch.equal(segops.max_unpool2d(output, flat, *case.sizes, output_size=x.shape, backend=backend), back)


def test_images_without_a_batch(backend: str, device: str) -> None:
    x = make_logits((3, 6, 9), device=device).requires_grad_()
    output, indices = segops.max_pool2d(x, 3, 2, 1, backend=backend)
    whole, whole_indices = segops.max_pool2d(x[None], 3, 2, 1, backend=backend)
    assert torch.equal(output, whole[0])
    assert torch.equal(indices, whole_indices[0])
    for where in (indices, segops.local_to_flat_indices(indices, (6, 9), 3, 2, 1)):
        back = segops.max_unpool2d(output, where, 3, 2, 1, output_size=(6, 9), backend=backend)
        assert torch.equal(back, segops.max_unpool2d(whole, where[None], 3, 2, 1, 1, (6, 9), backend=backend)[0])
    (gradient,) = torch.autograd.grad(back.square().sum(), x)
    assert gradient.shape == x.shape


def test_nothing_of_old_memory_is_left(kernel_backend: str, poisoned_memory: None, device: str) -> None:
    for name in ("2x2, odd", "2x2, odd, ceil", "stride above kernel", "3x3 s2, a ResNet's"):
        case = CASES[name]
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(case.shape, device=device).contiguous(memory_format=memory_format).requires_grad_()
            output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode, backend=kernel_backend)
            flat = segops.local_to_flat_indices(indices, case.shape[2:], *case.sizes)
            for where in (indices, flat):
                back = segops.max_unpool2d(output, where, *case.sizes, case.shape[2:], backend=kernel_backend)
                (gradient,) = torch.autograd.grad(back.sum(), x, retain_graph=True)
                assert not back.isnan().any()
                assert not gradient.isnan().any()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_number_of_threads(number: int, device: str) -> None:
    """Large enough to be cut; the bits do not depend on the threads."""
    if device != "cpu":
        pytest.skip("threads of a CPU")
    with threads(number):
        for case in (Case((2, 16, 95, 130), 2, ceil_mode=True), Case((2, 7, 91, 120), 3, 2, 1)):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(case.shape, generator=torch.Generator().manual_seed(6))
                x = x.contiguous(memory_format=memory_format).requires_grad_()
                output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode)
                expected, flat = case.pool(x.detach())
                assert torch.equal(output, expected)
                (gradient,) = torch.autograd.grad(output, x, expected)
                assert torch.equal(gradient, summed(expected, flat, *case.shape[2:]))
                for where in (indices, flat):
                    back = segops.max_unpool2d(output, where, *case.sizes, case.shape[2:])
                    assert torch.equal(back, unpooled(expected, flat, *case.shape[2:]))
                    (gradient,) = torch.autograd.grad(back, output, back, retain_graph=True)
                    stands = latest(flat, *case.shape[2:]) if where is indices else True
                    assert torch.equal(gradient, gathered(back, flat) * stands)


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    least = [max(e - 2 * p, d) for e, p, d in zip(extent, padding, dilation, strict=True)]
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 5)), *(draw(st.integers(m, m + 19)) for m in least))
    return Case(shape, kernel, stride, padding, dilation, draw(st.booleans()))


@settings(max_examples=60)
@given(case=any_case(), channels_last=st.booleans(), seed=st.integers(0, 9))
def test_any_windows(case: Case, channels_last: bool, seed: int, device: str) -> None:
    """Shapes, windows and layouts at random: pooling is torch's, and unpooling takes every size it came from."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randint(0, 9, case.shape, generator=torch.Generator().manual_seed(seed)).float().to(device)
    x = x.contiguous(memory_format=memory_format)
    expected, flat = case.pool(x)
    random_local, random_flat, size = random_indices(case, seed)
    names = ("native", *(("simt",) if device == "cpu" and segops._library.simt_unavailable is None else ()))
    for backend in names:
        output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode, backend=backend)
        assert torch.equal(output, expected)
        assert torch.equal(segops.local_to_flat_indices(indices, case.shape[2:], *case.sizes), flat)
        assert torch.equal(segops.flat_to_local_indices(flat, case.shape[2:], *case.sizes), indices)
        y = torch.randn((*case.shape[:2], *size), device=device).contiguous(memory_format=memory_format)
        truth = unpooled(y.cpu(), random_flat, *case.shape[2:]).to(device)
        for where in (random_local.to(device), random_flat.to(device)):
            back = segops.max_unpool2d(y, where, *case.sizes, output_size=case.shape[2:], backend=backend)
            assert torch.equal(back, truth)


@pytest.mark.parametrize("far", [(2, 1 << 20, 0, 1), (2, (1 << 31) - 1, 0, 1), (2, 1 << 28, 0, 1 << 28)], ids=str)
def test_windows_far_larger_than_the_image(far: tuple[int, ...], device: str) -> None:
    """What is not in the image costs nothing."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 16, 4, 4, device=device).contiguous(memory_format=memory_format)
        output, indices = segops.max_pool2d(x, *far, ceil_mode=True)
        expected, flat = F.max_pool2d(x, *far, ceil_mode=True, return_indices=True)
        assert torch.equal(output, expected)
        restored = segops.max_unpool2d(output, indices, *far, output_size=(4, 4))
        assert torch.equal(
            restored, torch.zeros_like(x).flatten(2).scatter(2, flat.flatten(2), output.flatten(2)).view_as(x)
        )
        assert torch.equal(segops.max_unpool2d(output, flat, *far, output_size=(4, 4)), restored)


@pytest.fixture
def recycled_memory() -> Iterator[None]:
    """Freed memory is used again rather than returned to the system, also by what is allocated next."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        pytest.skip("a setting of glibc")
    trim_threshold, mmap_max = -1, -4
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(mmap_max, 0)
    yield
    mallopt(mmap_max, 65536)
    mallopt(trim_threshold, 128 << 10)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 64, 512, 512), (1, 64, 512, 544), (1, 80, 512, 416)], ids=str)
def test_large_images(
    shape: tuple[int, ...], memory_format: torch.memory_format, number: int, recycled_memory: None, device: str
) -> None:
    """Several items of work, and stores past the caches: of values and of indices, of values alone, in used memory."""
    if device != "cpu":
        pytest.skip("threads and caches of a CPU")
    with threads(number):
        x = torch.randn(shape).contiguous(memory_format=memory_format)
        expected, flat = F.max_pool2d(x, 2, return_indices=True)
        local = segops.flat_to_local_indices(flat, shape[2:], 2)
        restored = torch.zeros_like(x).flatten(2).scatter(2, flat.flatten(2), expected.flatten(2)).view(shape)
        for _ in range(2):
            output, indices = segops.max_pool2d(x, 2)
            assert torch.equal(output, expected)
            assert torch.equal(indices, local)
            assert torch.equal(segops.max_unpool2d(output, indices, 2), restored)
            window = window_of("max_unpool2d", 2, None, 0, 1)
            assert torch.equal(torch.ops.segops.max_unpool2d_backward(x, indices, window, False), expected)
            del output, indices
