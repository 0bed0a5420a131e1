"""Arguments of max_pool2d and max_unpool2d; they mean what they do in torch.nn.functional, and are checked as there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from segops._dtypes import FLOATING
from segops._layout import check_dense

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST_TAPS = 256

#: kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, as operators take it.
Window = list[int]


def check_image(op: str, name: str, x: Any) -> None:
    """A dense tensor [N, C, h, w] or [C, h, w] that has channels and pixels, or a TypeError or ValueError."""
    check_dense(op, name, x)
    if x.dtype not in FLOATING and x.dtype not in INTEGERS:
        raise TypeError(f"segops.{op}: {name} must be floating point or an integer type up to int64, got {x.dtype}")
    if x.ndim not in (3, 4) or 0 in x.shape[-3:]:
        raise ValueError(
            f"segops.{op}: {name} must be [N, C, h, w] or [C, h, w] with C, h and w at least 1, got {list(x.shape)}"
        )


def check_indices(op: str, indices: Any, input: Tensor) -> None:
    """uint8 or int64, of the shape and on the device of the input."""
    check_dense(op, "indices", indices)
    if indices.dtype not in (torch.uint8, torch.int64):
        raise TypeError(
            f"segops.{op}: indices must be uint8 (positions in windows) or int64 (positions in planes), "
            f"got {indices.dtype}"
        )
    if indices.shape != input.shape:
        raise ValueError(
            f"segops.{op}: indices must have the shape of input, {list(input.shape)}, got {list(indices.shape)}"
        )
    if indices.device != input.device:
        raise ValueError(f"segops.{op}: indices must be on the device of input, {input.device}, got {indices.device}")


def window_of(op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    """The eight numbers of a window; stride None is the kernel's size.

    Raises:
        TypeError: something that is no int, or no pair of them.
        ValueError: sizes, strides and dilations below 1, padding below 0 or above half of
            kernel_size (as in torch, dilation does not count).
    """
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    as_kernel = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    strides = kernel if as_kernel else _pair(op, "stride", stride, 1)
    paddings, dilations = _pair(op, "padding", padding, 0), _pair(op, "dilation", dilation, 1)
    if paddings[0] > kernel[0] // 2 or paddings[1] > kernel[1] // 2:
        raise ValueError(
            f"segops.{op}: padding must be at most half of kernel_size, got padding {padding!r} "
            f"for kernel_size {kernel_size!r}"
        )
    return [*kernel, *strides, *paddings, *dilations]


def check_taps(op: str, window: Window) -> None:
    """Local indices are uint8."""
    if window[0] * window[1] > MOST_TAPS:
        raise ValueError(
            f"segops.{op}: a window may have at most {MOST_TAPS} elements, whose positions a uint8 holds, "
            f"got {window[0]} x {window[1]}"
        )


def pooled_length(size: Any, axis: Window, ceil_mode: bool) -> Any:
    """Windows along an axis (kernel, stride, padding, dilation) of `size`, as torch counts them."""
    kernel, stride, padding, dilation = axis
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = (room + stride - 1) // stride + 1
    return torch.sym_min(count, (size + padding + stride - 1) // stride)  # none begins in the padding behind the input


def check_pooled(op: str, input_size: Sequence[Any], window: Window, ceil_mode: bool) -> None:
    """That pooling has a window, and each window an element of the input."""
    for size, axis in zip(input_size, (window[::2], window[1::2]), strict=True):
        _, stride, padding, dilation = axis
        if pooled_length(size, axis, ceil_mode) < 1:
            raise ValueError(
                f"segops.{op}: an input of {input_size[0]} x {input_size[1]} is too small for windows of "
                f"{window[0]} x {window[1]} with dilation {window[6]} x {window[7]} and padding "
                f"{window[4]} x {window[5]}"
            )
        if padding == 0 or dilation == 1 or size >= dilation:
            continue
        for begin in range(-padding, 0, stride):
            if begin % dilation >= size and pooled_length(size, axis, ceil_mode) > (begin + padding) // stride:
                raise ValueError(
                    f"segops.{op}: an input of {input_size[0]} x {input_size[1]} leaves a window without any element: "
                    f"padding {window[4]} x {window[5]}, dilation {window[6]} x {window[7]}"
                )


def unpooled_size(op: str, pooled: Sequence[Any], window: Window, output_size: Sequence[int] | None) -> tuple[Any, Any]:
    """(H, W) that unpooling restores: the smallest size pooling can have come from, or the given one if it can be.

    Raises:
        TypeError, ValueError: no pair of ints (or shape that ends in one), or a size that pooling does not take there.
    """
    axes = (window[::2], window[1::2])
    least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, (k, s, p, d) in zip(pooled, axes, strict=True)]
    if output_size is None:
        sizes = least
    else:
        if not isinstance(output_size, (tuple, list)):
            raise TypeError(f"segops.{op}: output_size must be a tuple of ints, got {output_size!r}")
        sizes = list(output_size[-2:])
        if len(output_size) not in (2, 3, 4):
            raise ValueError(f"segops.{op}: output_size must end in H and W, got {len(output_size)} elements")
    for size, base, stride in zip(sizes, least, window[2:4], strict=True):
        if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
            raise TypeError(f"segops.{op}: output_size must be a tuple of ints, got {output_size!r}")
        # As in torch; what pooling in either mode has come from is in this range. Sizes that a graph leaves open are
        # not compared: they would no longer be free, and a wrong one shows in the indices.
        if _reaches(base - stride, size) or _reaches(size, base + stride) or size < 1:
            raise ValueError(
                f"segops.{op}: no pooling with kernel_size {tuple(window[:2])}, stride {tuple(window[2:4])}, padding "
                f"{tuple(window[4:6])} and dilation {tuple(window[6:])} makes {pooled[0]} x {pooled[1]} of "
                f"{sizes[0]} x {sizes[1]}; without output_size it is {least[0]} x {least[1]}"
            )
    return sizes[0], sizes[1]


def _reaches(a: Any, b: Any) -> bool:
    """Whether a is known to be b or more."""
    return a >= b if type(a) is int and type(b) is int else statically_known_true(a >= b)


def input_size_of(op: str, input_size: Any) -> tuple[Any, Any]:
    """(H, W) from a pair of ints or a shape that ends in one."""
    if not isinstance(input_size, (tuple, list)) or len(input_size) < 2:
        raise TypeError(f"segops.{op}: input_size must be (H, W), got {input_size!r}")
    for size in input_size[-2:]:
        if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
            raise TypeError(f"segops.{op}: input_size must be (H, W), got {input_size!r}")
        if size < 1:
            raise ValueError(f"segops.{op}: input_size must be at least 1 in each dimension, got {input_size!r}")
    if all(type(size) is int for size in input_size[-2:]) and input_size[-2] * input_size[-1] >= 1 << 63:
        raise ValueError(f"segops.{op}: input_size has more pixels than an int64 can tell apart, got {input_size!r}")
    return input_size[-2], input_size[-1]


def _pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    if type(value) is int and least <= value < 1 << 31:  # the usual call, whose cost small images show
        return value, value
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for one in values:
        if not isinstance(one, int) or isinstance(one, bool):
            raise TypeError(f"segops.{op}: {name} must be an int or a pair of ints, got {value!r}")
        if not least <= one < 1 << 31:
            raise ValueError(f"segops.{op}: {name} must be at least {least} and below 2**31, got {value!r}")
    if len(values) not in (1, 2):
        raise ValueError(f"segops.{op}: {name} must be an int or a pair of ints, got {len(values)} elements")
    return values[0], values[-1]
