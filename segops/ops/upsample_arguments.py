"""Arguments of the upsampling operators; sizes and scales mean what they do in torch.nn.functional.interpolate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segops._dtypes import FLOATING
from segops._layout import check_dense

#: Sizes below it, so that none is beyond 64 bits, nor what is computed from it.
SIZES = 1 << 31


def check_image(op: str, name: str, x: Any) -> None:
    """A dense floating-point tensor [N, C, h, w] that has pixels, or a TypeError or ValueError."""
    check_dense(op, name, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"segops.{op}: {name} must be float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"segops.{op}: {name} must be [N, C, h, w] with C, h and w at least 1, got {list(x.shape)}")


def output_geometry(
    op: str,
    input_shape: Sequence[Any],
    size: int | Sequence[int] | None,
    scale_factor: float | Sequence[float] | None,
) -> tuple[Any, Any, float, float]:
    """(height, width, scale_h, scale_w) of the output of an [N, C, h, w] input; scale 0.0 where the size decides.

    Exactly one of `size` and `scale_factor` is given, each one number or one per spatial dimension. With a scale the
    size is the floor of input * scale, and the scale itself, not the ratio of the sizes, says where outputs are read.

    Raises:
        TypeError: something that is no number, or no pair of them.
        ValueError: both or neither given, a wrong number of elements, sizes below 1, scales that are not above 0.
    """
    if (size is None) == (scale_factor is None):
        given = "neither" if size is None else f"size={size!r} and scale_factor={scale_factor!r}"
        raise ValueError(f"segops.{op}: exactly one of size and scale_factor must be given, got {given}")
    if size is not None:
        height, width = output_size(op, size)
        return height, width, 0.0, 0.0
    scales = _pair(op, "scale_factor", scale_factor, "a number or a pair of numbers", (int, float))
    for scale in scales:
        if not 0 < scale < SIZES:
            raise ValueError(f"segops.{op}: scale_factor must be above 0 and below 2**31, got {scale_factor!r}")
    scale_h, scale_w = float(scales[0]), float(scales[1])
    height, width = torch.sym_int(input_shape[2] * scale_h), torch.sym_int(input_shape[3] * scale_w)
    if height < 1 or width < 1:
        raise ValueError(
            f"segops.{op}: scale_factor {scale_factor!r} leaves an output of {height} x {width} "
            f"from an input of {input_shape[2]} x {input_shape[3]}; it must have at least one pixel"
        )
    if is_beyond(height) or is_beyond(width):
        raise ValueError(f"segops.{op}: the output must be below 2**31 in each dimension, got {height} x {width}")
    return height, width, scale_h, scale_w


def output_size(op: str, size: Any) -> tuple[Any, Any]:
    """(height, width) from one integer or two, which may be symbolic."""
    height, width = _pair(op, "size", size, "an int or a pair of ints", (int, torch.SymInt))
    if height < 1 or width < 1:
        raise ValueError(f"segops.{op}: size must be at least 1 in each dimension, got {size!r}")
    if is_beyond(height) or is_beyond(width):
        raise ValueError(f"segops.{op}: size must be below 2**31 in each dimension, got {size!r}")
    return height, width


def is_beyond(size: Any) -> bool:
    """Sizes that a graph leaves open are not compared: they would no longer be free."""
    return isinstance(size, int) and size >= SIZES


def _pair(op: str, name: str, value: Any, expected: str, types: tuple[type, ...]) -> tuple[Any, Any]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    for one in values:
        if not isinstance(one, types) or isinstance(one, bool):
            raise TypeError(f"segops.{op}: {name} must be {expected}, got {value!r}")
    if len(values) != 2:
        raise ValueError(f"segops.{op}: {name} must be {expected}, got {len(values)} elements")
    return values
