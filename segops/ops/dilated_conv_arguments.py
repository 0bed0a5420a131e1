"""Arguments of dilated_conv2d: what is refused, and the numbers that the operator takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segops._dtypes import FLOATING, accumulation_dtype
from segops._layout import check_dense
from segops.ops.upsample_arguments import SIZES, check_image, is_beyond
from segops.reference.dilated_conv import ACTIVATIONS

OP = "dilated_conv2d"
PRECISIONS = ("default", "fast")


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """An int, or one for each axis, of at least `least`."""
    if type(value) is int and least <= value < SIZES:  # the common case, in a fraction of the time
        return value, value
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values):
        raise TypeError(f"segops.{OP}: {name} must be an int or a pair of ints, got {value!r}")
    if any(v < least or is_beyond(v) for v in values):
        raise ValueError(f"segops.{OP}: {name} must be at least {least} and below 2**31, got {value!r}")
    return values


def check_tensors(input: Any, weight: Any, groups: Any, **optional: Any) -> None:
    """That they are images of a convolution in so many groups; of what is `optional`, that it is a tensor or None."""
    check_image(OP, "input", input)
    check_dense(OP, "weight", weight)
    if weight.dtype not in FLOATING:
        raise TypeError(f"segops.{OP}: weight must be floating point, got {weight.dtype}")
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(
            f"segops.{OP}: weight must be [C_out, C_in / groups, kernel_h, kernel_w], got {list(weight.shape)}"
        )
    for name, t in optional.items():
        if t is not None:
            check_dense(OP, name, t)
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"segops.{OP}: groups must be an int, got {groups!r}")
    if groups < 1 or input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"segops.{OP}: groups must divide C_out, and weight have C_in / groups channels, got groups={groups}, "
            f"weight {list(weight.shape)} and input {list(input.shape)}"
        )


def check_device(name: str, t: Tensor, input: Tensor) -> None:
    if t.device != input.device:
        raise ValueError(f"segops.{OP}: {name} must be on {input.device} like input, got {t.device}")


def check_like_input(name: str, t: Tensor, input: Tensor) -> None:
    check_device(name, t, input)
    if t.dtype != input.dtype:
        raise TypeError(f"segops.{OP}: {name} must be {input.dtype} like input, got {t.dtype}")


def check_vector(name: str, t: Any, channels: int, input: Tensor) -> Tensor | None:
    """A vector of the output's channels in the dtype that sums have, or None."""
    if t is None:
        return None
    check_dense(OP, name, t)
    if t.dtype not in FLOATING:
        raise TypeError(f"segops.{OP}: {name} must be floating point, got {t.dtype}")
    if t.shape != (channels,):
        raise ValueError(f"segops.{OP}: {name} must be [C_out] = [{channels}], got {list(t.shape)}")
    check_device(name, t, input)
    return t.to(accumulation_dtype(input))


def check_activation(activation: Any, slope: Any) -> int:
    """Its number."""
    if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
        raise ValueError(f"segops.{OP}: activation must be one of {ACTIVATIONS}, got {activation!r}")
    if (slope is not None) != (activation == "prelu"):
        raise ValueError(f'segops.{OP}: slope must be given with activation="prelu", and only then')
    return ACTIVATIONS.index(activation)


def check_precision(precision: Any) -> bool:
    """Whether it is "fast"."""
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"segops.{OP}: precision must be one of {PRECISIONS}, got {precision!r}")
    return bool(precision == "fast")


def output_size(size: Any, kernel: Any, stride: int, padding: int, dilation: int) -> Any:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check_output_size(input: Tensor, weight: Tensor, window: list[int]) -> tuple[Any, Any]:
    height, width = (output_size(input.shape[2 + axis], weight.shape[2 + axis], *window[axis::2]) for axis in (0, 1))
    if height < 1 or width < 1:
        raise ValueError(
            f"segops.{OP}: input must hold the dilated kernel once, got {list(input.shape)} for weight "
            f"{list(weight.shape)}, padding {tuple(window[2:4])} and dilation {tuple(window[4:])}"
        )
    return height, width
