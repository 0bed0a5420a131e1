"""max_pool2d and max_unpool2d's Triton functions as they are, against torch and against the definition by loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segops import errors
from segops.triton import interpreting
from segops.triton import max_unpool as op
from tests.cases import make_logits

pytestmark = pytest.mark.skipif(not interpreting(), reason="CPU tensors are for the interpreter")

#: [kernel, stride, padding, dilation] of both axes, ceil_mode, H and W: pairs, pairs with a rest, overlapping windows,
#: gaps between windows and between taps, more taps than are unrolled, one pixel.
WINDOWS = (
    ((2, 2, 2, 2, 0, 0, 1, 1), False, 6, 10),
    ((2, 2, 2, 2, 0, 0, 1, 1), True, 7, 5),
    ((3, 3, 2, 2, 1, 1, 1, 1), False, 7, 11),
    ((3, 2, 1, 3, 1, 0, 1, 1), True, 5, 8),
    ((3, 3, 2, 1, 1, 1, 2, 3), False, 9, 11),
    ((5, 5, 1, 2, 2, 2, 1, 1), False, 6, 7),
    ((1, 1, 1, 1, 0, 0, 1, 1), False, 1, 1),
)
LAYOUTS = ("contiguous", "channels_last", "channels_last_channel_slice", "expanded")


def unpooled(x: Tensor, indices: Tensor, height: int, width: int, window: tuple[int, ...]) -> tuple[list, list]:
    """By output element, which windows point at it (row-major), and which windows point nowhere; flat positions."""
    kh, kw, sh, sw, ph, pw, dh, dw = window
    n, c, h, w = indices.shape
    to: list[list[int]] = [[] for _ in range(n * c * height * width)]
    bad = []
    for position, index in enumerate(indices.flatten().tolist()):
        plane, wy, wx = position // (h * w), position // w % h, position % w
        y, x_ = wy * sh - ph + index // kw * dh, wx * sw - pw + index % kw * dw
        if index < kh * kw and 0 <= y < height and 0 <= x_ < width:
            to[(plane * height + y) * width + x_].append(position)
        else:
            bad.append(position)
    return to, bad


def flat(indices: Tensor, width: int, window: tuple[int, ...]) -> Tensor:
    _, kw, sh, sw, ph, pw, dh, dw = window
    y = torch.arange(indices.shape[2])[:, None] * sh - ph + indices.long() // kw * dh
    return y * width + torch.arange(indices.shape[3]) * sw - pw + indices.long() % kw * dw


@pytest.mark.parametrize("turn", range(len(WINDOWS)))
def test_pooling_is_torch_s(turn: int) -> None:
    window, ceil_mode, height, width = WINDOWS[turn]
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int64, torch.float16)
    for i, layout in enumerate(LAYOUTS):
        dtype = dtypes[(turn + i) % len(dtypes)]
        x = make_logits((2, 3, height, width), torch.float32, layout, scale=2).round()
        if dtype.is_floating_point:
            x[:, :, 0, 0], x[:, 0], x[:, 1, -1] = torch.nan, -torch.inf, torch.nan
        x = x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)
        output, indices = op.max_pool2d(x, list(window), ceil_mode)
        sizes = (window[:2], window[2:4], window[4:6], window[6:])
        as_float = x.float() if dtype == torch.float16 else x
        theirs, theirs_at = F.max_pool2d(as_float, *sizes, ceil_mode=ceil_mode, return_indices=True)
        torch.testing.assert_close(output, theirs.to(dtype), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(flat(indices, width, window), theirs_at)
        assert output.stride() == theirs.stride() == indices.stride()


@pytest.mark.parametrize("turn", range(len(WINDOWS)))
def test_unpooling_is_its_definition(turn: int) -> None:
    window, ceil_mode, height, width = WINDOWS[turn]
    in_shape = op.max_pool2d(torch.zeros(2, 3, height, width), list(window), ceil_mode)[0].shape
    for i in range(2):
        dtype = (torch.float32, torch.bfloat16, torch.int16, torch.float64)[(turn + i) % 4]
        layout = LAYOUTS[(turn + 2 * i) % len(LAYOUTS)]
        x = make_logits(tuple(in_shape), torch.float32, layout).to(dtype)
        indices = torch.randint(0, window[0] * window[1] + 1, in_shape, dtype=torch.uint8)
        if layout.startswith("channels_last"):
            indices = indices.contiguous(memory_format=torch.channels_last)
        to, bad = unpooled(x, indices, height, width, window)
        output, record = op.max_unpool2d(x, indices, height, width, list(window), False, errors.RECORD)
        values = x.flatten()
        expected = torch.stack([values[at[-1]] if at else values.new_zeros(()) for at in to])
        assert torch.equal(output.flatten(), expected)
        first = bad[0] if bad else 0
        assert record.tolist() == [len(bad), first, int(indices.flatten()[first]) if bad else 0]
        if not dtype.is_floating_point:
            continue
        exact = values.double()
        sums = torch.stack([exact[at].sum() if at else exact.new_zeros(()) for at in to])
        output, again = op.max_unpool2d(x, indices, height, width, list(window), True, errors.RECORD)
        assert again.tolist() == record.tolist()
        torch.testing.assert_close(output.flatten(), sums.to(dtype))

        grad = make_logits((2, 3, height, width), dtype, LAYOUTS[(turn + i + 1) % len(LAYOUTS)])
        fine = grad.flatten()
        for accumulate in (False, True):
            expected = torch.zeros(in_shape.numel(), dtype=dtype)
            for target, at in enumerate(to):
                expected[at if accumulate else at[-1:]] = fine[target]
            gradient = op.max_unpool2d_backward(grad, indices, list(window), accumulate)
            assert torch.equal(gradient.flatten(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flat_indices_point_anywhere(layout: str) -> None:
    shape, (height, width) = (2, 3, 4, 5), (3, 7)
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        x = make_logits(shape, torch.float32, layout).abs().to(dtype)
        indices = torch.randint(-1, height * width + 1, shape)
        if layout.startswith("channels_last"):
            indices = indices.contiguous(memory_format=torch.channels_last)
        good = (indices >= 0) & (indices < height * width)
        output, record = op.max_unpool2d_flat(x, indices, height, width, False, errors.RECORD)
        expected, sums = torch.zeros(2, 3, height * width, dtype=dtype), torch.zeros(2, 3, height * width).double()
        for at in good.nonzero().tolist():
            plane, index = tuple(at[:2]), int(indices[tuple(at)])
            expected[(*plane, index)] = x[tuple(at)]
            sums[(*plane, index)] += x[tuple(at)].double()
        assert torch.equal(output.flatten(2), expected)
        bad = (~good).flatten().nonzero().flatten()
        assert record.tolist() == [len(bad), int(bad[0]), int(indices.flatten()[bad[0]])]
        if not dtype.is_floating_point:
            continue
        output, again = op.max_unpool2d_flat(x, indices, height, width, True, errors.RECORD)
        assert again.tolist() == record.tolist()
        torch.testing.assert_close(output.flatten(2), sums.to(dtype))
        grad = make_logits((2, 3, height, width), dtype, layout)
        gradient = op.max_unpool2d_flat_backward(grad, indices)
        picked = grad.flatten(2).gather(2, indices.clamp(0, height * width - 1).flatten(2)).view(shape)
        assert torch.equal(gradient, torch.where(good, picked, 0))


def test_outputs_that_no_window_reaches_are_zero() -> None:
    """More rows and columns than windows cover, and fewer than there are windows."""
    x, indices = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    pair, record = [2, 2, 2, 2, 0, 0, 1, 1], errors.RECORD
    output, seen = op.max_unpool2d(x, indices, 9, 8, pair, False, record)
    assert output[..., :4:2, :6:2].sum() == output.sum() == 6
    assert seen.tolist() == [0, 0, 0]
    output, seen = op.max_unpool2d(x, indices, 2, 5, pair, False, record)
    assert output.sum() == 3
    assert seen.tolist() == [3, 3, 0]


def test_a_batch_of_nothing() -> None:
    x, indices = torch.ones(0, 2, 2, 3), torch.zeros(0, 2, 2, 3, dtype=torch.uint8)
    pair = [2, 2, 2, 2, 0, 0, 1, 1]
    assert op.max_pool2d(x, pair, False)[1].shape == (0, 2, 1, 1)
    for output, seen in (
        op.max_unpool2d(x, indices, 4, 6, pair, False, errors.RECORD),
        op.max_unpool2d_flat(x, indices.long(), 4, 6, False, errors.RECORD),
        op.max_unpool2d_flat(x, indices.long(), 4, 6, True, errors.RECORD),
    ):
        assert output.shape == (0, 2, 4, 6)
        assert seen.tolist() == [0, 0, 0]


def test_bad_indices_raise_where_they_are_asked_to() -> None:
    x, indices = torch.ones(1, 1, 2, 3), torch.full((1, 1, 2, 3), 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="6 indices"):
        op.max_unpool2d(x, indices, 4, 6, [2, 2, 2, 2, 0, 0, 1, 1], False, errors.RAISE)
    with pytest.raises(RuntimeError, match="first is 99"):
        op.max_unpool2d_flat(x, indices.long() + 95, 4, 6, False, errors.RAISE)
