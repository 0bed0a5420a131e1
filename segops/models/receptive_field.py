"""Which pixels of the image an operator's output depends on, from those its inputs depend on.

Rows and columns are followed by themselves. For each position of a tensor along an axis there are the first and the
last position of the image that it can depend on, so that strides, dilation, upsampling, cropping and paths that meet
need no rules of their own. Beyond a tensor's border positions go on as inside, so that padding hides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Positions = Any  # an array of numbers


@dataclass(frozen=True)
class Axis:
    """
    Attributes:
        first, last: float [size], positions of the image; infinite for what depends on all of it.
        step: between neighbours, in positions of the image.
    """

    first: Positions
    last: Positions
    step: float

    @classmethod
    def of_image(cls, size: int) -> Axis:
        return cls(np.arange(size, dtype=float), np.arange(size, dtype=float), 1.0)

    @property
    def reach(self) -> float:
        """The most positions of the image that one position depends on.

        Of those in the middle: at a border an upsampled tensor does not go on evenly.
        """
        n = len(self.first)
        extent = (self.last - self.first)[n // 4 : n - n // 4]
        return float(np.round(extent.max(initial=0.0))) + 1

    def read(self, low: Positions, high: Positions, step: float) -> Axis:
        """What reads the positions from `low` to `high` of this, each an array of integers; `step` between them."""
        return Axis(_at(self.first, low, self.step), _at(self.last, high, self.step), self.step * step)

    def joined(self, other: Axis) -> Axis:
        return Axis(np.minimum(self.first, other.first), np.maximum(self.last, other.last), self.step)

    def everything(self, size: int) -> Axis:
        """What depends on all of the image."""
        return Axis(np.full(size, -np.inf), np.full(size, np.inf), self.step * len(self.first) / max(size, 1))


def _at(values: Positions, index: Positions, step: float) -> Positions:
    inside = np.clip(index, 0, len(values) - 1)
    return values[inside] + (index - inside) * step


Axes = tuple[Axis, Axis]  # of rows, of columns


def _windows(axis: Axis, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    start = np.arange(size) * stride - padding
    return axis.read(start, start + dilation * (kernel - 1), stride)


def _spread(axis: Axis, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """A transposed convolution, or unpooling: what the windows that hold a position belong to."""
    at = np.arange(size) + padding
    high = at // stride
    return axis.read(np.minimum(-((dilation * (kernel - 1) - at) // stride), high), high, 1 / stride)


def _bilinear(axis: Axis, size: int, align_corners: bool) -> Axis:
    at, n = np.arange(size), len(axis.first)
    if align_corners:
        source = at * ((n - 1) / max(size - 1, 1))
    else:
        source = np.maximum((at + 0.5) * (n / size) - 0.5, 0)
    low = np.floor(source).astype(int)
    high = np.minimum(low + (source > low), n - 1)
    return axis.read(low, high, n / size)


def _nearest(axis: Axis, size: int) -> Axis:
    index = np.arange(size) * len(axis.first) // size
    return axis.read(index, index, len(axis.first) / size)


def _adaptive(axis: Axis, size: int) -> Axis:
    n = len(axis.first)
    if size == 1 and n > 1:
        return axis.everything(1)
    index = np.arange(size)
    return axis.read(index * n // size, -(-(index + 1) * n // size) - 1, n / size)


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _filled(given: tuple[Any, ...], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return given + defaults[len(given) :]


def _padded(axis: Axis, size: int, before: int) -> Axis:
    index = np.arange(size) - before
    return axis.read(index, index, 1)


Rule = Callable[[tuple[Any, ...], list[Axes], tuple[int, int]], Axes]


def _by_axis(function: Callable[..., Axis], numbers: Callable[[tuple[Any, ...]], Sequence[Any]]) -> Rule:
    """The rule of an operator of one image: ``function(axis, size, *numbers(arguments)[axis])``."""

    def rule(arguments: tuple[Any, ...], sources: list[Axes], size: tuple[int, int]) -> Axes:
        of_axes = numbers(arguments)
        rows, columns = (
            function(axis, n, *of_axes[i]) for i, (axis, n) in enumerate(zip(sources[0], size, strict=True))
        )
        return rows, columns

    return rule


def _pooling(a: tuple[Any, ...]) -> list[tuple[int, ...]]:
    kernel, stride, padding, dilation = _filled(a[1:5], (None, None, 0, 1))
    sizes = (_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation))
    return list(zip(*sizes, strict=True))


def _average_pooling(a: tuple[Any, ...]) -> list[tuple[int, ...]]:
    return _pooling(a[:4])


def _convolution(arguments: tuple[Any, ...], sources: list[Axes], size: tuple[int, int]) -> Axes:
    _, weight, _, stride, padding, dilation, transposed, *_ = arguments
    sizes = (weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation))
    return _by_axis(_spread if transposed else _windows, lambda a: list(zip(*sizes, strict=True)))(
        arguments, sources, size
    )


def _unpooling(arguments: tuple[Any, ...], sources: list[Axes], size: tuple[int, int]) -> Axes:
    window = arguments[4]
    rows, columns = joined(sources)
    return _spread(rows, size[0], *window[0::2]), _spread(columns, size[1], *window[1::2])


def _flat_unpooling(arguments: tuple[Any, ...], sources: list[Axes], size: tuple[int, int]) -> Axes:
    """Flat indices do not tell the window: that it is as large as its stride is assumed."""
    rows, columns = (_nearest(axis, n) for axis, n in zip(joined(sources), size, strict=True))
    return rows, columns


def _upsample_cat(arguments: tuple[Any, ...], sources: list[Axes], size: tuple[int, int]) -> Axes:
    rows, columns = (_bilinear(axis, n, arguments[2]) for axis, n in zip(sources[0], size, strict=True))
    return joined([(rows, columns), *sources[1:]])


def _slice(arguments: tuple[Any, ...], sources: list[Axes], size: tuple[int, int]) -> Axes:
    image, dim, start, _, step = _filled(arguments, (None, 0, None, None, 1))
    axes = list(sources[0])
    at = dim % image.ndim - (image.ndim - 2)
    if at >= 0:
        first, n = start or 0, len(axes[at].first)
        first = min(first if first >= 0 else max(first + n, 0), n)
        index = np.arange(size[at]) * step + first
        axes[at] = axes[at].read(index, index, step)
    return axes[0], axes[1]


def _dilated_conv(a: tuple[Any, ...]) -> list[tuple[int, ...]]:
    return [(a[1].shape[2 + i], *a[7][i::2]) for i in (0, 1)]


def _pads(a: tuple[Any, ...]) -> list[tuple[int]]:
    return [(a[1][2] if len(a[1]) > 2 else 0,), (a[1][0],)]


_RULES: dict[str, Rule] = {
    "aten::convolution": _convolution,
    "segops::dilated_conv2d": _by_axis(_windows, _dilated_conv),
    "aten::max_pool2d_with_indices": _by_axis(_windows, _pooling),
    "aten::avg_pool2d": _by_axis(_windows, _average_pooling),
    "segops::max_pool2d": _by_axis(_windows, lambda a: [a[1][0::2], a[1][1::2]]),
    "segops::max_unpool2d": _unpooling,
    "segops::max_unpool2d_flat": _flat_unpooling,
    "aten::max_unpool2d": _flat_unpooling,
    "aten::upsample_bilinear2d": _by_axis(_bilinear, lambda a: [(a[2],)] * 2),
    "segops::upsample_bilinear2d": _by_axis(_bilinear, lambda a: [(a[3],)] * 2),
    "segops::upsample_cat": _upsample_cat,
    "aten::upsample_nearest2d": _by_axis(_nearest, lambda a: [()] * 2),
    "segops::upsample_nearest2d": _by_axis(_nearest, lambda a: [()] * 2),
    "segops::bed_of_nails2d": _by_axis(_nearest, lambda a: [()] * 2),
    "aten::_adaptive_avg_pool2d": _by_axis(_adaptive, lambda a: [()] * 2),
    "aten::constant_pad_nd": _by_axis(_padded, _pads),
    "aten::reflection_pad2d": _by_axis(_padded, _pads),
    "aten::replication_pad2d": _by_axis(_padded, _pads),
    "aten::slice": _slice,
}


def joined(sources: Sequence[Axes]) -> Axes:
    """Of what depends on all of these, of one size."""
    rows, columns = sources[0]
    for other_rows, other_columns in sources[1:]:
        rows, columns = rows.joined(other_rows), columns.joined(other_columns)
    return rows, columns


def through(
    operator: Any, arguments: tuple[Any, ...], inputs: Sequence[tuple[Tensor, Axes]], output: Tensor
) -> Axes | None:
    """What `output` depends on, or None where none of the inputs has come from the image.

    Operators without a rule are taken for pixelwise where all images have the size of the output, or one pixel;
    otherwise (flattened pixels, means) the output depends on all of the image.

    Args:
        operator: of torch.ops, with `arguments`.
        inputs: its tensors that have come from the image, in order, and what they depend on.
        output: its first result.
    """
    sources = [axes for _, axes in inputs]
    if not sources or output.ndim < 2:
        return None
    size = (int(output.shape[-2]), int(output.shape[-1]))
    rule = _RULES.get(operator._schema.name)
    if rule is not None:
        return rule(arguments, sources, size)
    fitting = [_broadcast(axes, size) for axes in sources]
    if output.ndim >= 3 and all(axes is not None for axes in fitting):
        return joined([axes for axes in fitting if axes is not None])
    rows, columns = sources[0]
    return rows.everything(size[0]), columns.everything(size[1])


def _broadcast(axes: Axes, size: tuple[int, int]) -> Axes | None:
    grown = []
    for axis, n in zip(axes, size, strict=True):
        if len(axis.first) == n:
            grown.append(axis)
        elif len(axis.first) == 1:
            grown.append(Axis(np.repeat(axis.first, n), np.repeat(axis.last, n), axis.step))
        else:
            return None
    return grown[0], grown[1]


def of_image(image: Tensor) -> Axes:
    return Axis.of_image(int(image.shape[-2])), Axis.of_image(int(image.shape[-1]))


def tensors_of(arguments: Any) -> list[Tensor]:
    """The tensors among the arguments of an operator, also those in its lists."""
    return [t for t in torch.utils._pytree.tree_leaves(arguments) if isinstance(t, Tensor)]
