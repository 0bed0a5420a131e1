"""Indices: conversion between positions in windows and in planes, and corrupt ones, which must never write anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import segops
from segops import backends, errors
from segops.ops.max_unpool_arguments import window_of
from tests.cases import make_logits
from tests.ops.max_unpool_cases import CASES, Case, random_indices, taps_of

LARGEST = 2**63 - 1
OVERLAPPING = Case((1, 2, 5, 7), 3, 2, 1)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("name", CASES)
def test_conversions_compose_to_the_identity(name: str, device: str) -> None:
    case = CASES[name]
    local, flat, _ = (t.to(device) if isinstance(t, Tensor) else t for t in random_indices(case))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        local, flat = local.contiguous(memory_format=memory_format), flat.contiguous(memory_format=memory_format)
        to_flat = segops.local_to_flat_indices(local, case.shape[2:], *case.sizes)
        to_local = segops.flat_to_local_indices(flat, case.shape[2:], *case.sizes)
        assert torch.equal(to_flat, flat)
        assert torch.equal(to_local, local)
        assert (to_flat.dtype, to_local.dtype) == (torch.int64, torch.uint8)
    if local.shape[0]:
        assert torch.equal(segops.local_to_flat_indices(local[0], case.shape[2:], *case.sizes), flat[0])


@pytest.mark.parametrize("name", ["2x2, odd, ceil", "3x3 s2, a ResNet's", "dilated", "uneven", "stride above kernel"])
def test_conversion_refuses_exactly_what_is_no_tap(name: str, device: str) -> None:
    """Each position of the plane (and one beyond either end) against each window."""
    case = CASES[name]
    height, width = case.shape[2:]
    h, w = case.pool(torch.zeros(1, 1, height, width))[0].shape[2:]
    table = taps_of(case, h, w, height, width)
    for window in range(h * w):
        i, j = divmod(window, w)
        good = table[i, j][table[i, j] >= 0][0]
        base = torch.where(table[:, :, :] >= 0, table, LARGEST).amin(-1)
        assert base[i, j] <= good
        taps = set(table[i, j].tolist()) - {-1}
        for position in (-1, *range(0, height * width, 3 if height * width > 80 else 1), height * width):
            flat = base.clone().to(device)
            flat[i, j] = position
            if position in taps:
                assert (
                    segops.local_to_flat_indices(
                        segops.flat_to_local_indices(flat, case.shape[2:], *case.sizes), case.shape[2:], *case.sizes
                    )[i, j]
                    == position
                )
                continue
            if device == "cpu":
                with pytest.raises(ValueError, match=rf"flat_to_local_indices: 1 index .* {position} at \[{i}, {j}\]"):
                    segops.flat_to_local_indices(flat, case.shape[2:], *case.sizes)


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [(segops.local_to_flat_indices, torch.uint8), (segops.flat_to_local_indices, torch.int64)],
    ids=["local_to_flat", "flat_to_local"],
)
def test_bad_arguments_of_conversions(convert: Callable[..., Tensor], dtype: torch.dtype, device: str) -> None:
    good = torch.zeros(1, 1, 2, 2, dtype=dtype, device=device)
    for arguments, error, words in (
        (([0], (4, 4), 2), TypeError, "indices must be a tensor, got list"),
        ((good.int(), (4, 4), 2), TypeError, f"indices must be {str(dtype)[6:]}, got torch.int32"),
        ((good[0, 0, 0], (4, 4), 2), ValueError, "indices must be [..., h, w], got [2]"),
        ((good, 4, 2), TypeError, "input_size must be (H, W), got 4"),
        ((good, (4.0, 4), 2), TypeError, "input_size must be (H, W)"),
        ((good, (0, 4), 2), ValueError, "input_size must be at least 1"),
        ((good, (1 << 62, 2), 2), ValueError, "input_size has more pixels than an int64 can tell apart"),
        ((good, (4, 4), 17), ValueError, "at most 256 elements"),
        ((good, (4, 4), 2, 0), ValueError, "stride must be at least 1"),
    ):
        with pytest.raises(error, match=re.escape(f"segops.{convert.__name__}: ") + ".*" + re.escape(words)):
            convert(*arguments)


def corrupt(indices: Tensor, value: int, at: tuple[int, ...]) -> Tensor:
    indices = indices.clone()
    indices[at] = value
    return indices


def expect_error(call: Callable[[], object], device: str, words: str) -> None:
    """At once on a CPU; on a device by the time it was waited for."""
    if device == "cuda":
        call()
        call = segops.check_errors
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


@pytest.mark.parametrize("value", [9, 10, 255])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_local_index_outside_its_window(value: int, layout: str, backend: str, device: str) -> None:
    local, _, size = random_indices(OVERLAPPING)
    local = make_like(corrupt(local, value, (0, 1, 1, 2)), layout, device)
    x = make_logits((1, 2, *size), layout=layout, device=device)
    expect_error(
        lambda: segops.max_unpool2d(x, local, 3, 2, 1, output_size=(5, 7), backend=backend),
        device,
        f"segops.max_unpool2d: 1 index is outside its window of 3 x 3, [0, 9), or the output of 5 x 7; the first is "
        f"{value} at [n, c, y, x] = [0, 1, 1, 2]",
    )


@pytest.mark.parametrize(("tap", "window"), [(0, (0, 0)), (2, (0, 3)), (3, (2, 0)), (8, (2, 3)), (6, (2, 1))])
def test_local_index_of_a_tap_in_the_padding(tap: int, window: tuple[int, int], backend: str, device: str) -> None:
    local, _, size = random_indices(OVERLAPPING)
    local = corrupt(local, tap, (0, 0, *window)).to(device)
    x = torch.randn((1, 2, *size), device=device)
    words = rf"the first is {tap} at [n, c, y, x] = [0, 0, {window[0]}, {window[1]}]"
    expect_error(lambda: segops.max_unpool2d(x, local, 3, 2, 1, output_size=(5, 7), backend=backend), device, words)
    if device == "cpu":
        with pytest.raises(ValueError, match="local_to_flat_indices: 1 index"):
            segops.local_to_flat_indices(local, (5, 7), 3, 2, 1)


@pytest.mark.parametrize("value", [-1, 35, 36, -LARGEST - 1, LARGEST, 1 << 32, -(1 << 32)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_flat_index_outside_the_plane(value: int, layout: str, backend: str, device: str) -> None:
    _, flat, size = random_indices(OVERLAPPING)
    flat = make_like(corrupt(flat, value, (0, 1, 0, 3)), layout, device)
    x = make_logits((1, 2, *size), layout=layout, device=device)
    expect_error(
        lambda: segops.max_unpool2d(x, flat, 3, 2, 1, output_size=(5, 7), backend=backend),
        device,
        f"segops.max_unpool2d: 1 index is outside the output of 5 x 7, [0, 35); the first is {value} at "
        "[n, c, y, x] = [0, 1, 0, 3]",
    )


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("case", [OVERLAPPING, Case((2, 3, 7, 9), 2, ceil_mode=True), Case((1, 17, 4, 6), 2)], ids=str)
def test_what_is_bad_is_counted_and_written_nowhere(
    case: Case, accumulate: bool, kernel_backend: str, device: str
) -> None:
    """All but one element corrupt: the record tells how many and the first; only the good one is in the output.

    That nothing is written beside the output is seen by the drivers of tests/csrc, whose buffers have exact bounds.
    """
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    window = window_of("max_unpool2d", *case.sizes)
    local, flat, size = random_indices(case)
    height, width = case.shape[2:]
    kept = (case.shape[0] - 1, case.shape[1] - 1, size[0] - 1, 0)
    everything_bad = torch.full_like(local, 255)
    everything_bad[kept] = local[kept]
    far = torch.full_like(flat, LARGEST)
    far[..., ::2] = -LARGEST - 1
    far[kept] = flat[kept]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = (torch.rand((*case.shape[:2], *size)) + 1).to(device).contiguous(memory_format=memory_format)
        expected = torch.zeros(case.shape, device=device)
        expected[(*kept[:2], int(flat[kept]) // width, int(flat[kept]) % width)] = x[kept]
        for op, indices, extra in ((ops.max_unpool2d, everything_bad, (window,)), (ops.max_unpool2d_flat, far, ())):
            places = indices.to(device).contiguous(memory_format=memory_format)
            output, record = op(x, places, height, width, *extra, accumulate, errors.RECORD)
            assert torch.equal(output, expected)
            assert record.tolist() == [indices.numel() - 1, 0, int(indices.flatten()[0])]
            grad = torch.ones(case.shape, device=device).contiguous(memory_format=memory_format)
            if extra:
                gradient = ops.max_unpool2d_backward(grad, places, window, accumulate)
            else:
                gradient = ops.max_unpool2d_flat_backward(grad, places)
            assert gradient.count_nonzero() == 1
            assert gradient[kept] == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_first_bad_index_is_first_in_row_major_order(layout: str, kernel_backend: str, device: str) -> None:
    case = Case((2, 20, 18, 40), 2)
    local, flat, size = random_indices(case)
    places = [(0, 3, 8, 19), (0, 4, 0, 1), (1, 0, 0, 0), (1, 19, 8, 19)]
    position = (3 * size[0] + 8) * size[1] + 19
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    x = make_logits((2, 20, *size), layout=layout, device=device)
    for rank, place in enumerate(places):
        local[place], flat[place] = 250 - rank, -5 - rank
    window = window_of("max_unpool2d", *case.sizes)
    local, flat = make_like(local, layout, device), make_like(flat, layout, device)
    _, record = ops.max_unpool2d(x, local, 18, 40, window, False, errors.RECORD)
    assert record.tolist() == [4, position, 250]
    _, record = ops.max_unpool2d_flat(x, flat, 18, 40, False, errors.RECORD)
    assert record.tolist() == [4, position, -5]


def test_good_indices_leave_an_empty_record(kernel_backend: str, device: str) -> None:
    ops = getattr(torch.ops, backends.namespace(kernel_backend))
    for case in (OVERLAPPING, CASES["2x2"], CASES["no images"], CASES["2x2, odd, ceil"]):
        local, flat, size = random_indices(case)
        x = torch.randn((*case.shape[:2], *size), device=device)
        window = window_of("max_unpool2d", *case.sizes)
        _, record = ops.max_unpool2d(x, local.to(device), *case.shape[2:], window, False, errors.RECORD)
        assert record.tolist()[0] == 0
        _, record = ops.max_unpool2d_flat(x, flat.to(device), *case.shape[2:], False, errors.RECORD)
        assert record.tolist()[0] == 0


@pytest.mark.parametrize("path", ["local", "flat"])
def test_compiled_bad_indices_raise_runtime_error_with_the_same_text(
    path: str, kernel_backend: str, device: str
) -> None:
    if device != "cpu":
        pytest.skip("a device keeps what it meets in a graph for segops.check_errors")
    x = torch.zeros(1, 1, 2, 2)
    indices = torch.tensor([[[[0, 99], [1, 2]]]], dtype=torch.uint8 if path == "local" else torch.int64)

    def step(x: Tensor, indices: Tensor) -> Tensor:
        return segops.max_unpool2d(x, indices, 2, backend=kernel_backend)

    with pytest.raises(ValueError, match="99 at") as eager:
        step(x, indices)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=re.escape(str(eager.value))):
        compiled(x, indices)


def test_every_size_that_pooling_can_have_come_from(device: str) -> None:
    for kernel, stride, padding, dilation in ((2, 2, 0, 1), (3, 2, 1, 1), (2, 3, 0, 1), (3, 1, 1, 2), (3, 4, 1, 1)):
        sizes = [size for size in range(1, 14) if size + 2 * padding >= dilation * (kernel - 1) + 1]
        for size in sizes:
            for ceil_mode in (False, True):
                x = torch.randn(1, 1, size, 13, device=device)
                output, indices = segops.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
                back = segops.max_unpool2d(output, indices, kernel, stride, padding, dilation, x.shape)
                assert back.shape == x.shape
                assert back.count_nonzero() > 0


def make_like(indices: Tensor, layout: str, device: str) -> Tensor:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return indices.to(device).contiguous(memory_format=memory_format)
