"""max_pool2d and max_unpool2d in Triton: the operators of `segops.ops.max_unpool`, with their schemas' arguments.

What only moves elements moves bits, as integers of their size. Each element of a result is written once, by the program
whose tile it is in; floating-point numbers are added in registers, in row-major order of the windows.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from segops import errors
from segops._layout import empty_image
from segops.ops.max_unpool_arguments import MOST_TAPS, pooled_length
from segops.triton._runtime import INTERPRETING, computing_dtype, launch, report
from segops.triton.max_unpool_flat import (
    max_unpool_flat_backward_kernel,
    max_unpool_flat_kernel,
    max_unpool_flat_mark_kernel,
    max_unpool_flat_sum_kernel,
)
from segops.triton.max_unpool_record import max_unpool_record_kernel
from segops.triton.max_unpool_windows import (
    max_pool_kernel,
    max_unpool_backward_kernel,
    max_unpool_check_kernel,
    max_unpool_kernel,
    max_unpool_pairs_kernel,
)
from segops.triton.tiles import TILE, cut

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INTEGERS = {
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}


class _Axis(NamedTuple):
    """One axis of the windows."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """How many windows reach one position at most."""
        return -(-self.kernel // self.stride) if self.dilation == 1 else self.kernel

    def inside(self, windows: int, size: int) -> bool:
        """Whether no tap of any window is outside the image."""
        last = (windows - 1) * self.stride + (self.kernel - 1) * self.dilation
        return self.padding == 0 and last < size


_PAIR = _Axis(2, 2, 0, 1)


def _axes(op: str, window: list[int]) -> tuple[_Axis, _Axis]:
    least = (1, 1, 1, 1, 0, 0, 1, 1)
    if len(window) != 8 or any(map(int.__lt__, window, least)) or window[0] * window[1] > MOST_TAPS:
        raise RuntimeError(f"segops.{op}: no windows of up to {MOST_TAPS} elements: {window}")
    return _Axis(*window[::2]), _Axis(*window[1::2])


def _constants(vertical: _Axis, horizontal: _Axis) -> dict[str, tuple[int, ...]]:
    return {"VERTICAL": tuple(vertical), "HORIZONTAL": tuple(horizontal)}


def _bits(x: Tensor) -> Tensor:
    return x.view(_BITS[x.element_size()])


def _check_sizes(op: str, x: Tensor, *images: tuple[int, ...]) -> None:
    if x.ndim != 4:
        raise RuntimeError(f"segops.{op}: expected [N, C, H, W], got {list(x.shape)}")
    for height, width in images:
        if not (height > 0 and width > 0 and height * width < 1 << 31):
            raise RuntimeError(
                f"segops.{op}: the Triton kernels take images of 1 to 2^31 pixels, not {height} x {width}"
            )


def _check_indices(op: str, indices: Tensor, dtype: torch.dtype, like: Tensor, dims: int, floating: bool) -> None:
    """Indices fit `like` in the first `dims` dimensions, and what is to be added up is floating-point."""
    if indices.dtype != dtype or indices.ndim != 4 or indices.shape[:dims] != like.shape[:dims]:
        raise RuntimeError(
            f"segops.{op}: indices {list(indices.shape)} of {indices.dtype} do not fit {list(like.shape)} and {dtype}"
        )
    if floating and not like.is_floating_point():
        raise RuntimeError(f"segops.{op}: expected floating-point numbers, got {like.dtype}")


def max_pool2d(input: Tensor, window: list[int], ceil_mode: bool) -> tuple[Tensor, Tensor]:
    vertical, horizontal = _axes("max_pool2d", window)
    _check_sizes("max_pool2d", input)
    in_height, in_width = input.shape[2:]
    height, width = pooled_length(in_height, window[::2], ceil_mode), pooled_length(in_width, window[1::2], ceil_mode)
    _check_sizes("max_pool2d", input, (in_height, in_width), (height, width))
    output = empty_image(input, input.shape[1], height, width)
    indices = empty_image(input, input.shape[1], height, width, torch.uint8)
    across = not output.is_contiguous()
    whole = vertical.inside(height, in_height) and horizontal.inside(width, in_width)
    programs, blocks = cut(output, height, width, across)
    launch(
        max_pool_kernel,
        programs,
        input,
        input,
        output,
        indices,
        input.shape[1],
        height,
        width,
        in_height,
        in_width,
        input.stride(),
        **_constants(vertical, horizontal),
        WHOLE=whole,
        PAIRS=whole and horizontal == _PAIR and vertical.dilation == 1 and vertical.kernel <= 8 and not across,
        T=_INTEGERS[input.dtype] if input.dtype in _INTEGERS else computing_dtype(input),
        LOWEST=float("-inf") if input.is_floating_point() else torch.iinfo(input.dtype).min,
        INTERPRETING=INTERPRETING,
        **blocks,
    )
    return output, indices


def max_unpool2d(
    input: Tensor, indices: Tensor, height: int, width: int, window: list[int], accumulate: bool, on_bad: int
) -> tuple[Tensor, Tensor]:
    vertical, horizontal = _axes("max_unpool2d", window)
    _check_indices("max_unpool2d", indices, torch.uint8, input, 4, accumulate)
    in_height, in_width = input.shape[2:]
    _check_sizes("max_unpool2d", input, (in_height, in_width), (height, width))
    output = empty_image(input, input.shape[1], height, width)
    across = not output.is_contiguous()
    seen = torch.zeros(2, dtype=torch.int64, device=input.device)
    sizes = (input.shape[1], height, width, in_height, in_width)
    # Windows that do not overlap have nothing to add up.
    if vertical == horizontal == _PAIR:
        rows, columns = max(in_height, (height + 1) // 2), max(in_width, (width + 1) // 2)
        programs, blocks = cut(
            output, rows, columns, across, TILE if across and input.element_size() < 4 else TILE // 2
        )
        moved = (_bits(input), indices, _bits(output))
        strides = (input.stride(), indices.stride())
        bits = _INTEGERS[moved[0].dtype]
        launch(max_unpool_pairs_kernel, programs, input, *moved, seen, *sizes, *strides, T=bits, **blocks)
    else:
        constants = _constants(vertical, horizontal)
        programs, blocks = cut(output, in_height, in_width, across)
        launch(max_unpool_check_kernel, programs, input, indices, seen, *sizes, indices.stride(), **constants, **blocks)
        programs, blocks = cut(output, height, width, across)
        values, results = (input, output) if accumulate else (_bits(input), _bits(output))
        launch(
            max_unpool_kernel,
            programs,
            input,
            values,
            indices,
            results,
            *sizes,
            input.stride(),
            indices.stride(),
            **constants,
            REACH=(vertical.reach, horizontal.reach),
            ACCUMULATE=accumulate,
            T=computing_dtype(input) if accumulate else _INTEGERS[values.dtype],
            INTERPRETING=INTERPRETING,
            **blocks,
        )
    describe = partial(
        errors.describe_bad_indices, "max_unpool2d", shape=list(indices.shape), size=(height, width), kernel=window[:2]
    )
    return output, _record(seen, indices, on_bad, describe)


def max_unpool2d_backward(grad_output: Tensor, indices: Tensor, window: list[int], accumulate: bool) -> Tensor:
    vertical, horizontal = _axes("max_unpool2d_backward", window)
    _check_indices("max_unpool2d_backward", indices, torch.uint8, grad_output, 2, True)
    in_height, in_width = indices.shape[2:]
    _check_sizes("max_unpool2d_backward", grad_output, (in_height, in_width), tuple(grad_output.shape[2:]))
    grad_input = empty_image(grad_output, grad_output.shape[1], in_height, in_width)
    reach = (vertical.reach, horizontal.reach)
    programs, blocks = cut(grad_input, in_height, in_width, not grad_input.is_contiguous())
    launch(
        max_unpool_backward_kernel,
        programs,
        grad_output,
        _bits(grad_output),
        indices,
        _bits(grad_input),
        *grad_output.shape[1:],
        in_height,
        in_width,
        grad_output.stride(),
        indices.stride(),
        **_constants(vertical, horizontal),
        REACH=reach,
        LATEST=not accumulate and reach != (1, 1),
        **blocks,
    )
    return grad_input


def max_unpool2d_flat(
    input: Tensor, indices: Tensor, height: int, width: int, accumulate: bool, on_bad: int
) -> tuple[Tensor, Tensor]:
    _check_indices("max_unpool2d", indices, torch.int64, input, 4, accumulate)
    (n, c, in_height, in_width), pixels = input.shape, height * width
    _check_sizes("max_unpool2d", input, (in_height, in_width), (height, width))
    output = empty_image(input, input.shape[1], height, width)
    across = not output.is_contiguous()
    seen = torch.zeros(2, dtype=torch.int64, device=input.device)
    latest = None
    if not accumulate:
        latest = empty_image(input, input.shape[1], height, width, torch.int32).zero_()
    programs, blocks = cut(output, in_height, in_width, across, TILE // 2)
    sizes = (c, in_height, in_width, pixels)
    launch(max_unpool_flat_mark_kernel, programs, input, indices, latest, seen, *sizes, indices.stride(), **blocks)
    programs, blocks = cut(output, height, width, across)
    if accumulate:
        # Sums in row-major order: the sort is stable, and each output finds its run. scatter_add_ has no order on a
        # device, and index_put_ has one of its own for long runs.
        flat = indices.reshape(n, c, in_height * in_width)
        keys, order = torch.where((flat >= 0) & (flat < pixels), flat, pixels).contiguous().sort(dim=-1, stable=True)
        windows = in_height * in_width
        launch(
            max_unpool_flat_sum_kernel,
            programs,
            input,
            input,
            keys,
            order,
            output,
            c,
            height,
            width,
            in_width,
            windows,
            windows.bit_length(),
            input.stride(),
            T=computing_dtype(input),
            INTERPRETING=INTERPRETING,
            **blocks,
        )
    else:
        moved = (_bits(input), latest, _bits(output))
        launch(max_unpool_flat_kernel, programs, input, *moved, c, height, width, in_width, input.stride(), **blocks)
    describe = partial(errors.describe_bad_indices, "max_unpool2d", shape=list(indices.shape), size=(height, width))
    return output, _record(seen, indices, on_bad, describe)


def max_unpool2d_flat_backward(grad_output: Tensor, indices: Tensor) -> Tensor:
    _check_indices("max_unpool2d_backward", indices, torch.int64, grad_output, 2, True)
    in_height, in_width = indices.shape[2:]
    height, width = grad_output.shape[2:]
    _check_sizes("max_unpool2d_backward", grad_output, (in_height, in_width), (height, width))
    grad_input = empty_image(grad_output, grad_output.shape[1], in_height, in_width)
    programs, blocks = cut(grad_input, in_height, in_width, not grad_input.is_contiguous())
    launch(
        max_unpool_flat_backward_kernel,
        programs,
        grad_output,
        _bits(grad_output),
        indices,
        _bits(grad_input),
        grad_output.shape[1],
        in_height,
        in_width,
        height * width,
        width,
        grad_output.stride(),
        indices.stride(),
        **blocks,
    )
    return grad_input


def _record(seen: Tensor, indices: Tensor, on_bad: int, describe: errors.Describe) -> Tensor:
    """The record of bad indices, after what `on_bad` asks for."""
    record = torch.empty(3, dtype=torch.int64, device=seen.device)
    launch(max_unpool_record_kernel, 1, seen, indices, seen, record, *indices.shape[1:], indices.stride())
    report(record, on_bad, describe)
    return record
