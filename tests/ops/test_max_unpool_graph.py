"""max_pool2d and max_unpool2d: derivatives, graphs, fake tensors, what is refused and with which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import segops
from segops import backends, errors
from tests.cases import make_logits
from tests.ops.graphs import assert_compiled_once, assert_forward_mode_is_refused, reloaded, unless_refused
from tests.ops.max_unpool_cases import Case, random_indices

PAIRS = Case((2, 3, 4, 6), 2)
OVERLAPPING = Case((2, 2, 5, 6), 3, 2, 1)
UNEVEN = Case((1, 2, 7, 6), (3, 2), (1, 3), (1, 0), (2, 1), True)
ALL = {"2x2": PAIRS, "overlapping": OVERLAPPING, "uneven": UNEVEN}


def window_of(case: Case) -> list[int]:
    from segops.ops.max_unpool_arguments import window_of

    return window_of("max_pool2d", *case.sizes)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def permuted(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Elements far apart, so that a finite difference does not change who wins."""
    count = torch.Size(case.shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order.view(case.shape).to(device, dtype) / count


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded", "channels_last_crop"])
@pytest.mark.parametrize("name", ["pool", "unpool", "unpool_backward", "flat", "flat_backward"])
def test_opcheck(name: str, layout: str, kernel_backend: str, device: str) -> None:
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    for case, dtype in ((PAIRS, torch.float32), (OVERLAPPING, torch.bfloat16)):
        local, flat, size = (t.to(device) if isinstance(t, Tensor) else t for t in random_indices(case))
        window = window_of(case)
        image = make_logits(case.shape, dtype, layout, device=device).detach().requires_grad_()
        pooled = make_logits((*case.shape[:2], *size), dtype, layout, device=device).detach().requires_grad_()
        arguments: tuple[Any, ...] = {
            "pool": (ops.max_pool2d, image, window, case.ceil_mode),
            "unpool": (ops.max_unpool2d, pooled, local, *case.shape[2:], window, False, errors.RECORD),
            "unpool_backward": (ops.max_unpool2d_backward, image, local, window, False),
            "flat": (ops.max_unpool2d_flat, pooled, flat, *case.shape[2:], False, errors.RECORD),
            "flat_backward": (ops.max_unpool2d_flat_backward, image, flat),
        }[name]
        torch.library.opcheck(arguments[0].default, arguments[1:])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ALL)
def test_gradcheck_twice(name: str, layout: str, backend: str, device: str) -> None:
    """Any local indices, so that windows disagree; flat ones apart, as duplicates have torch's gradient instead."""
    case, fast = ALL[name], backend == "triton"
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    local, _, size = random_indices(case)
    x = permuted(case, device=device).contiguous(memory_format=memory_format).requires_grad_()
    y = torch.randn((*case.shape[:2], *size), dtype=torch.float64, device=device).requires_grad_()
    apart = torch.arange(size[0] * size[1], device=device).view(size).expand(*case.shape[:2], -1, -1)

    def pool(t: Tensor) -> Tensor:
        return segops.max_pool2d(t, *case.sizes, case.ceil_mode, backend=backend)[0]

    def unpool(t: Tensor) -> Tensor:
        return segops.max_unpool2d(t, local.to(device), *case.sizes, case.shape[2:], backend=backend)

    def flat(t: Tensor) -> Tensor:
        return segops.max_unpool2d(t, apart, *case.sizes, case.shape[2:], backend=backend)

    for function, at in ((pool, x), (unpool, y), (flat, y)):
        assert torch.autograd.gradcheck(function, (at,), fast_mode=fast)
        assert torch.autograd.gradgradcheck(function, (at,), fast_mode=fast)


def test_second_derivative_of_flat_duplicates(backend: str, device: str) -> None:
    """The transpose of torch's gradient adds up what the gradient gave to every duplicate."""
    flat = torch.tensor([[[[0, 0], [3, 0]]]], device=device)
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    grad = torch.randn(1, 1, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    output = segops.max_unpool2d(x, flat, 2, backend=backend)
    (gradient,) = torch.autograd.grad(output, x, grad, create_graph=True)
    direction = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]], dtype=torch.float64, device=device)
    (second,) = torch.autograd.grad(gradient, grad, direction)
    assert second.flatten()[:4].tolist() == [11.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize("name", ALL)
def test_compile_gives_the_same_bits(name: str, backend: str, device: str) -> None:
    case = ALL[name]

    def step(x: Tensor) -> tuple[Tensor, ...]:
        output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode, backend=backend)
        local = segops.max_unpool2d(output, indices, *case.sizes, x.shape[2:], backend=backend)
        flat = segops.local_to_flat_indices(indices, x.shape[2:], *case.sizes)
        again = segops.flat_to_local_indices(flat, x.shape[2:], *case.sizes)
        return local, segops.max_unpool2d(output, flat, *case.sizes, x.shape[2:], backend=backend), again

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for layout in ("contiguous", "channels_last", "sliced"):
        results = []
        for run in (step, compiled):
            x = make_logits(case.shape, torch.bfloat16, layout, device=device).requires_grad_()
            local, flat, indices = run(x)
            gradient = torch.autograd.grad((local * flat.detach()).sum() + flat.square().sum(), x)
            results.append((local.detach(), flat.detach(), indices, *gradient))
        for eager, same in zip(*results, strict=True):
            assert torch.equal(same, eager)
            assert backend == "reference" or same.stride() == eager.stride()


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Compiled once for all sizes; the ops are nodes among others."""
    gain = torch.ones(3, 1, 1, device=device, requires_grad=True)

    def step(x: Tensor) -> tuple[Tensor]:
        scaled = gain * x
        output, indices = segops.max_pool2d(scaled, 3, 2, 1, ceil_mode=True, backend=kernel_backend)
        return ((segops.max_unpool2d(output, indices, 3, 2, 1, 1, x.shape, backend=kernel_backend) * x).sum(),)

    sizes = ((2, 46, 47), (4, 42, 35), (5, 31, 39))  # inductor compiles sums below 4096 addends anew
    inputs = ((torch.randn(n, 3, h, w, device=device),) for n, h, w in sizes)
    assert_compiled_once(step, gain, inputs, rtol=1e-4, atol=1e-2)


class _Net(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        output, indices = segops.max_pool2d(x, 2, ceil_mode=True)
        return segops.max_unpool2d(output, indices, 2, output_size=x.shape)


def test_export_with_dynamic_sizes(device: str) -> None:
    net = _Net().to(device)
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    program = torch.export.export(net, (torch.randn(2, 3, 8, 9, device=device),), dynamic_shapes=({**dims},))
    loaded = reloaded(program)
    for shape in ((2, 3, 8, 9), (5, 3, 11, 6)):
        x = torch.randn(shape, device=device)
        assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize(
    "case",
    [Case((2, 3, 5, 7), 3, 2, 1), Case((2, 3, 5, 7), 2, 2, 1, 1, True), Case((2, 3, 5, 7), 2, 2, 0, 1, True)],
    ids=str,
)
def test_fake_and_meta_tensors_give_shapes_and_strides(case: Case) -> None:
    """In ceil_mode no window begins in the padding behind the image."""

    def results(x: Tensor) -> tuple[Tensor, ...]:
        output, indices = segops.max_pool2d(x, *case.sizes, case.ceil_mode)
        return output, indices, segops.max_unpool2d(output, indices, *case.sizes, x.shape)

    for layout in ("contiguous", "channels_last"):
        x = make_logits(case.shape, torch.float16, layout)
        with FakeTensorMode() as mode:
            fakes = results(mode.from_tensor(x))
        for result, real in zip((*fakes, *results(x.to("meta"))), (*results(x), *results(x)), strict=True):
            assert (result.shape, result.stride(), result.dtype) == (real.shape, real.stride(), real.dtype)


def test_forward_mode_is_refused(kernel_backend: str, device: str) -> None:
    x = make_logits((1, 2, 4, 4), device=device)
    indices = torch.zeros(1, 2, 4, 4, dtype=torch.uint8, device=device)
    for function in (
        lambda t: segops.max_pool2d(t, 2, backend=kernel_backend)[0],
        lambda t: segops.max_unpool2d(t, indices, 2, backend=kernel_backend),
        lambda t: segops.max_unpool2d(t, indices.long(), 2, backend=kernel_backend),
    ):
        assert_forward_mode_is_refused(function, x)


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_function_transforms_work_or_are_refused(transform: str, device: str) -> None:
    x = make_logits((3, 1, 2, 4, 4), device=device)

    def function(t: Tensor) -> Tensor:
        output, indices = segops.max_pool2d(t, 2)
        return segops.max_unpool2d(output, indices, 2)

    if transform == "vmap":
        result = unless_refused(lambda: torch.func.vmap(function)(x))
        expected = torch.stack([function(one) for one in x])
    else:
        result = unless_refused(lambda: torch.func.grad(lambda t: function(t).square().sum())(x[0]))
        expected = 2 * function(x[0])
    assert result is None or torch.equal(result, expected)


def test_input_that_needs_no_gradient(kernel_backend: str, device: str) -> None:
    x = make_logits((1, 2, 4, 4), device=device)
    output, indices = segops.max_pool2d(x, 2, backend=kernel_backend)
    assert not output.requires_grad
    assert not segops.max_unpool2d(output, indices, 2, backend=kernel_backend).requires_grad
    with torch.no_grad():
        assert not segops.max_pool2d(x.detach().requires_grad_(), 2, backend=kernel_backend)[0].requires_grad


IMAGE = torch.zeros(1, 1, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([[1.0]], 2), {}, TypeError, "input must be a tensor, got list"),
        ((IMAGE.bool(), 2), {}, TypeError, "torch.bool"),
        ((IMAGE.cfloat(), 2), {}, TypeError, "torch.complex64"),
        ((IMAGE.to_sparse(), 2), {}, TypeError, "input must be a dense tensor"),
        ((IMAGE[0, 0], 2), {}, ValueError, "[N, C, h, w] or [C, h, w]"),
        ((IMAGE[:, :0], 2), {}, ValueError, "at least 1, got [1, 0, 4, 6]"),
        ((IMAGE, 0), {}, ValueError, "kernel_size must be at least 1 and below 2**31, got 0"),
        ((IMAGE, 2.0), {}, TypeError, "kernel_size must be an int or a pair of ints, got 2.0"),
        ((IMAGE, True), {}, TypeError, "kernel_size must be an int or a pair of ints, got True"),
        ((IMAGE, (1, 2, 3)), {}, ValueError, "kernel_size must be an int or a pair of ints, got 3 elements"),
        ((IMAGE, 17), {"padding": 8}, ValueError, "at most 256 elements"),
        ((IMAGE, 2), {"stride": 0}, ValueError, "stride must be at least 1 and below 2**31, got 0"),
        ((IMAGE, 2), {"padding": -1}, ValueError, "padding must be at least 0 and below 2**31, got -1"),
        ((IMAGE, 2), {"padding": 2}, ValueError, "padding must be at most half"),
        ((IMAGE, 2), {"dilation": 0}, ValueError, "dilation must be at least 1 and below 2**31, got 0"),
        ((IMAGE, 5), {}, ValueError, "4 x 6 is too small"),
        ((IMAGE[..., :1], 2), {"padding": 1, "dilation": 2}, ValueError, "without any element"),
    ],
)
def test_bad_arguments_of_pooling(
    arguments: Any, options: Any, error: type[Exception], words: str, backend: str, device: str
) -> None:
    arguments = [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises(error, match=re.escape("segops.max_pool2d: ") + ".*" + re.escape(words)):
        segops.max_pool2d(*arguments, **options, backend=backend)


INDICES = torch.zeros(1, 1, 4, 6, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("indices", "options", "error", "words"),
    [
        ([0], {}, TypeError, "indices must be a tensor, got list"),
        (INDICES.int(), {}, TypeError, "indices must be uint8"),
        (INDICES.float(), {}, TypeError, "indices must be uint8"),
        (INDICES[..., 1:], {}, ValueError, "indices must have the shape of input"),
        (INDICES[0], {}, ValueError, "indices must have the shape of input"),
        (INDICES.to("meta"), {}, ValueError, "indices must be on the device of input"),
        (INDICES, {"output_size": 8}, TypeError, "output_size must be a tuple of ints, got 8"),
        (INDICES, {"output_size": (8.0, 12)}, TypeError, "output_size must be a tuple of ints"),
        (INDICES, {"output_size": (8,)}, ValueError, "got 1 elements"),
        (INDICES, {"output_size": (10, 12)}, ValueError, "without output_size it is 8 x 12"),
        (INDICES, {"output_size": (8, 10)}, ValueError, "without output_size it is 8 x 12"),
    ],
)
def test_bad_arguments_of_unpooling(
    indices: Any, options: Any, error: type[Exception], words: str, backend: str, device: str
) -> None:
    if isinstance(indices, Tensor) and not indices.is_meta:
        indices = indices.to(device)
    with pytest.raises(error, match=re.escape("segops.max_unpool2d: ") + ".*" + re.escape(words)):
        segops.max_unpool2d(IMAGE.to(device), indices, 2, **options, backend=backend)


def test_operators_refuse_what_memory_safety_needs(kernel_backend: str, device: str) -> None:
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    x, local = IMAGE.to(device), INDICES.to(device)
    window = [2, 2, 2, 2, 0, 0, 1, 1]
    refused = [
        lambda: ops.max_pool2d(x, window[:7], False),
        lambda: ops.max_pool2d(x, [0, *window[1:]], False),
        lambda: ops.max_pool2d(x, [2, 2, 0, 2, 0, 0, 1, 1], False),
        lambda: ops.max_pool2d(x, [9, 2, 2, 2, 0, 0, 1, 1], False),
        lambda: ops.max_pool2d(x[0], window, False),
        lambda: ops.max_unpool2d(x, local, 0, 12, window, False, 0),
        lambda: ops.max_unpool2d(x, local.long(), 8, 12, window, False, 0),
        lambda: ops.max_unpool2d(x, local[..., 1:], 8, 12, window, False, 0),
        lambda: ops.max_unpool2d(x.int(), local, 8, 12, window, True, 0),
        lambda: ops.max_unpool2d_backward(x, local.expand(2, -1, -1, -1), window, False),
        lambda: ops.max_unpool2d_flat(x, local, 8, 12, False, 0),
        lambda: ops.max_unpool2d_flat(x, local.long()[:, :, 1:], 8, 12, False, 0),
        lambda: ops.max_unpool2d_flat(x, local.long(), 8, -1, False, 0),
        lambda: ops.max_unpool2d_flat_backward(x, local.long().expand(1, 3, -1, -1)),
    ]
    for call in refused:
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("name", ["max_unpool2d", "max_unpool2d_flat"])
def test_operators_clear_what_no_window_reaches(
    name: str, kernel_backend: str, device: str, poisoned_memory: None
) -> None:
    if kernel_backend == "triton":
        pytest.skip("refuses images without pixels")
    x = torch.empty(1, 8, 0, 32, device=device)
    local = name == "max_unpool2d"
    indices = torch.empty(x.shape, dtype=torch.uint8 if local else torch.int64, device=device)
    window = ([2, 2, 2, 2, 0, 0, 1, 1],) if local else ()
    op = getattr(getattr(torch.ops, backends.namespace(kernel_backend)), name)
    output, _ = op(x, indices, 1, 64, *window, False, errors.RECORD)
    assert output.shape == (1, 8, 1, 64)
    assert not output.any()
