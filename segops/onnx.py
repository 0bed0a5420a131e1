"""ONNX: what torch.onnx.export needs to know of the operators of segops.

Only ONNX's own operators are used, and of those only what the standard specifies: ties, NaN and overlapping windows
come out as in segops, whatever runs the graph. Nothing here imports onnxscript before it is needed.

In a graph, an index outside its window or plane points nowhere, silently; the record of such indices is zero, so that
nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from segops import _library

__all__ = ["OPSET", "export", "translation_table"]

OPSET = 18  # the first whose ScatterElements takes maxima

_FLOAT, _INT32, _INT64, _DOUBLE, _UINT8 = 1, 6, 7, 11, 2  # onnx.TensorProto's


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The argument `custom_translation_table` of ``torch.onnx.export(..., dynamo=True)``, opset 18 or later.

    It has max_pool2d and max_unpool2d (both kinds of index), which give in ONNX exactly what they give here.

    Raises:
        ImportError: onnxscript is not installed.
    """
    _onnxscript()
    translations: dict[str, Callable[..., Any]] = {
        "max_pool2d": _max_pool2d,
        "max_unpool2d": _max_unpool2d,
        "max_unpool2d_flat": _max_unpool2d_flat,
    }
    return {
        getattr(getattr(torch.ops, namespace), name).default: function
        for namespace in _library.NAMESPACES
        for name, function in translations.items()
    }


def export(model: torch.nn.Module, args: tuple[Any, ...], path: Any = None, **options: Any) -> Any:
    """:func:`torch.onnx.export` of a model that uses segops.

    Args:
        model: in eval mode, as a rule.
        args: example inputs.
        path: where to write the model; None: nowhere.
        options: further ones of torch.onnx.export, such as dynamic_shapes; an own custom_translation_table is added.

    Returns:
        The torch.onnx.ONNXProgram.

    Raises:
        ImportError: onnxscript is not installed.
    """
    table = {**translation_table(), **(options.pop("custom_translation_table", None) or {})}
    options.setdefault("opset_version", OPSET)
    return torch.onnx.export(model, args, path, dynamo=True, custom_translation_table=table, **options)


def _onnxscript() -> Any:
    try:
        import onnxscript
    except ImportError as error:
        raise ImportError("segops.onnx needs onnx and onnxscript: pip install 'segops[onnx]'") from error
    return onnxscript


def _op() -> Any:
    """Functions that append nodes to the graph that is being made."""
    return _onnxscript().values.Opset("", OPSET)


def _ints(*values: int) -> Any:
    return _op().Constant(value_ints=list(values))


def _vector(size: Any) -> Any:
    """An int64 [1] of a number or of a scalar of the graph."""
    return _ints(size) if isinstance(size, int) else _op().Reshape(_op().Cast(size, to=_INT64), _ints(1))


def _length(x: Any, axis: int) -> Any:
    return _op().Shape(x, start=axis, end=axis + 1)


def _count(size: Any, axis: Sequence[int], ceil_mode: bool) -> Any:
    """Windows along an axis of `size`, int64 [1]; the same as segops.ops.max_unpool_arguments.pooled_length."""
    op = _op()
    kernel, stride, padding, dilation = axis
    room = op.Add(size, _ints(2 * padding - dilation * (kernel - 1) - 1))
    if not ceil_mode:
        return op.Add(op.Div(room, _ints(stride)), _ints(1))
    # The room may be negative here, and ONNX divides toward zero: one more stride instead of one more window.
    count = op.Div(op.Add(room, _ints(2 * stride - 1)), _ints(stride))
    return op.Min(count, op.Div(op.Add(size, _ints(padding + stride - 1)), _ints(stride)))


def _range(stop: Any) -> Any:
    """0 ... stop - 1 for a stop of shape [1]."""
    op = _op()
    return op.Range(op.Constant(value_int=0), op.Squeeze(stop), op.Constant(value_int=1))


def _max_pool2d(input: Any, window: Sequence[int], ceil_mode: bool) -> tuple[Any, Any]:
    """Tap after tap, as csrc/include/segops/max_unpool.h says it: MaxPool leaves ties and NaN to the runtime."""
    op = _op()
    floating = input.dtype.is_floating_point()
    # Types in which runtimes compare; all widen without loss.
    wide = input.dtype.value if input.dtype.value in (_FLOAT, _DOUBLE, _INT64) else _FLOAT if floating else _INT32
    values = op.Cast(input, to=wide)
    sizes = [_length(input, 2), _length(input, 3)]
    axes = (window[::2], window[1::2])
    positions = [
        [
            op.Add(op.Mul(_range(_count(size, axis, ceil_mode)), _ints(axis[1])), _ints(tap * axis[3] - axis[2]))
            for tap in range(axis[0])
        ]
        for size, axis in zip(sizes, axes, strict=True)
    ]
    always_inside = not ceil_mode and window[4] == window[5] == 0
    largest = index = None
    for ky in range(window[0]):
        rows, rows_inside = _inside(positions[0][ky], sizes[0])
        band = op.Gather(values, rows, axis=2)
        for kx in range(window[1]):
            columns, columns_inside = _inside(positions[1][kx], sizes[1])
            tap = op.Gather(band, columns, axis=3)
            inside = op.And(op.Unsqueeze(rows_inside, _ints(1)), columns_inside)
            number = op.Constant(value_int=ky * window[1] + kx)
            if largest is None:
                start = op.Where(inside, number, op.Constant(value_int=-1))
                largest, index = tap, op.Expand(start, op.Shape(tap))
                continue
            wins = op.Greater(tap, largest)
            if floating:
                wins = op.Or(wins, op.IsNaN(tap))
            if not always_inside:
                wins = op.And(inside, op.Or(wins, op.Less(index, op.Constant(value_int=0))))
            largest, index = op.Where(wins, tap, largest), op.Where(wins, number, index)
    return op.Cast(largest, to=input.dtype.value), op.Cast(index, to=_UINT8)


def _inside(position: Any, size: Any) -> tuple[Any, Any]:
    """Positions that can be read, and which of them are the given ones."""
    op = _op()
    zero = op.Constant(value_int=0)
    inside = op.And(op.GreaterOrEqual(position, zero), op.Less(position, size))
    return op.Where(inside, position, zero), inside


def _max_unpool2d(
    input: Any, indices: Any, height: Any, width: Any, window: Sequence[int], accumulate: bool, on_bad: int
) -> tuple[Any, Any]:
    op = _op()
    height, width = _vector(height), _vector(width)
    local = op.Cast(indices, to=_INT64)
    kernel_w = _ints(window[1])
    first_y = op.Sub(op.Mul(_range(_length(input, 2)), _ints(window[2])), _ints(window[4]))
    first_x = op.Sub(op.Mul(_range(_length(input, 3)), _ints(window[3])), _ints(window[5]))
    y = op.Add(op.Unsqueeze(first_y, _ints(1)), op.Mul(op.Div(local, kernel_w), _ints(window[6])))
    x = op.Add(first_x, op.Mul(op.Mod(local, kernel_w), _ints(window[7])))
    inside = op.And(_inside(y, height)[1], _inside(x, width)[1])
    inside = op.And(inside, op.Less(local, _ints(window[0] * window[1])))
    return _unpool(input, op.Add(op.Mul(y, width), x), inside, height, width, accumulate)


def _max_unpool2d_flat(
    input: Any, indices: Any, height: Any, width: Any, accumulate: bool, on_bad: int
) -> tuple[Any, Any]:
    height, width = _vector(height), _vector(width)
    inside = _inside(indices, _op().Mul(height, width))[1]
    return _unpool(input, indices, inside, height, width, accumulate)


def _unpool(input: Any, flat: Any, inside: Any, height: Any, width: Any, accumulate: bool) -> tuple[Any, Any]:
    """The latest window of those that point at an element stands.

    ScatterElements leaves open which of several values stands, but not what their maximum is: it finds the number of
    the latest window (from 1; 0 where there is none), and GatherElements moves the values, behind a zero.
    """
    if accumulate:
        raise NotImplementedError("segops.onnx: sums of unpooled values are for derivatives, which are not exported")
    op = _op()
    images = op.Shape(input, start=0, end=2)  # of an empty batch 0, which Reshape takes for the input's own: 0 too
    plane = op.Concat(images, op.Mul(_length(input, 2), _length(input, 3)), axis=0)
    values = op.Reshape(input, plane)
    numbers = op.Add(_range(_length(values, 2)), op.Constant(value_int=1))
    nothing = op.Constant(value_int=0)
    inside = op.Reshape(inside, plane)
    target = op.Where(inside, op.Reshape(flat, plane), nothing)
    number = op.Where(inside, numbers, nothing)
    nowhere = op.Expand(nothing, op.Concat(images, op.Mul(height, width), axis=0))
    latest = op.ScatterElements(nowhere, target, number, axis=2, reduction="max")
    zero = op.Cast(op.Expand(nothing, op.Concat(images, _ints(1), axis=0)), to=input.dtype.value)
    moved = op.GatherElements(op.Concat(zero, values, axis=2), latest, axis=2)
    return op.Reshape(moved, op.Concat(images, height, width, axis=0)), _ints(0, 0, 0)
