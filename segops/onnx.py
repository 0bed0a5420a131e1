"""ONNX: what torch.onnx.export needs to know of the operators of segops.

Only ONNX's own operators are used, and of those only what the standard specifies: ties, NaN and overlapping windows
come out as in segops, whatever runs the graph. Sums (convolution, interpolation) differ by the runtime's rounding.
Nothing here imports onnxscript before it is needed.

In a graph, an index outside its window or plane points nowhere, silently; the record of such indices is zero, so that
nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from segops import _library
from segops.reference.dilated_conv import ACTIVATIONS, LEAKY_SLOPE

__all__ = ["OPSET", "export", "translation_table"]

OPSET = 18  # the first whose ScatterElements takes maxima

_FLOAT, _UINT8, _INT32, _INT64, _BOOL, _DOUBLE = 1, 2, 6, 7, 9, 11  # onnx.TensorProto's


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The argument `custom_translation_table` of ``torch.onnx.export(..., dynamo=True)``, opset 18 or later.

    It has what networks are made of and end in: convolution, pooling and unpooling (both kinds of index), upsampling
    and the labels of upsampled logits. Pooling, unpooling and nearest upsampling give in ONNX exactly what they give
    here. It has no losses and no confusion matrix.

    Raises:
        ImportError: onnxscript is not installed.
    """
    _onnxscript()
    translations: dict[str, Callable[..., Any]] = {
        "bed_of_nails2d": _bed_of_nails2d,
        "dilated_conv2d": _dilated_conv2d,
        "max_pool2d": _max_pool2d,
        "max_unpool2d": _max_unpool2d,
        "max_unpool2d_flat": _max_unpool2d_flat,
        "upsample_argmax": _upsample_argmax,
        "upsample_bilinear2d": _upsample_bilinear2d,
        "upsample_cat": _upsample_cat,
        "upsample_nearest2d": _upsample_nearest2d,
    }
    return {
        getattr(getattr(torch.ops, namespace), name).default: function
        for namespace in _library.NAMESPACES
        for name, function in translations.items()
    }


def export(
    model: torch.nn.Module | torch.export.ExportedProgram, args: tuple[Any, ...], path: Any = None, **options: Any
) -> Any:
    """:func:`torch.onnx.export` of a model that uses segops.

    Args:
        model: in eval mode, as a rule; or a program that torch.export has made of it.
        args: example inputs; () with a program.
        path: where to write the model; None: nowhere.
        options: further ones of torch.onnx.export; an own custom_translation_table is added. With
            ``dynamic_shapes=({0: Dim("images"), 2: Dim("height"), 3: Dim("width")},)`` of torch.export the graph takes
            images of any size, where the sides are multiples of a number ``16 * Dim("height")`` and so on.

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


def _wide(x: Any) -> Any:
    """What sums of elements of x are held in."""
    return x if x.dtype.value == _DOUBLE else _op().Cast(x, to=_FLOAT)


def _like(x: Any, input: Any) -> Any:
    return _op().Cast(x, to=input.dtype.value)


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


def _dilated_conv2d(
    input: Any,
    weight: Any,
    bias: Any,
    scale: Any,
    shift: Any,
    residual: Any,
    slope: Any,
    window: Sequence[int],
    groups: int,
    activation: int,
    fast: bool,
) -> Any:
    op = _op()

    def of_channels(vector: Any) -> Any:
        return op.Unsqueeze(vector, _ints(1, 2))

    strides, padding, dilations = list(window[:2]), list(window[2:4]), list(window[4:])
    x = op.Conv(
        _wide(input),
        _wide(weight),
        bias,
        strides=strides,
        pads=padding * 2,
        dilations=dilations,
        group=groups,
    )
    x = x if scale is None else op.Mul(x, of_channels(scale))
    x = x if shift is None else op.Add(x, of_channels(shift))
    x = x if residual is None else op.Add(x, _wide(residual))
    name = ACTIVATIONS[activation]
    if name == "relu":
        x = op.Relu(x)
    elif name == "leaky_relu":
        x = op.LeakyRelu(x, alpha=LEAKY_SLOPE)
    elif name == "silu":
        x = op.Mul(x, op.Sigmoid(x))
    elif name == "sigmoid":
        x = op.Sigmoid(x)
    elif name == "prelu":
        x = op.PRelu(x, of_channels(slope))
    return _like(x, input)


def _upsample_bilinear2d(
    input: Any, height: Any, width: Any, align_corners: bool, scale_h: float, scale_w: float
) -> Any:
    if all(scale == 0 or float(scale).is_integer() for scale in (scale_h, scale_w)):
        return _like(_resized(_wide(input), _vector(height), _vector(width), align_corners), input)
    if align_corners:  # where the sizes decide, whatever the scale
        return _like(_resized(_wide(input), _vector(height), _vector(width), True), input)
    op = _op()
    x = _wide(input)
    for axis, out, scale in ((3, width, scale_w), (2, height, scale_h)):
        low, high, weight = _taps(_length(x, axis), _vector(out), scale)
        weight = op.CastLike(weight if axis == 3 else op.Unsqueeze(weight, _ints(1)), x)
        first, second = op.Gather(x, low, axis=axis), op.Gather(x, high, axis=axis)
        x = op.Add(op.Mul(first, op.Sub(op.CastLike(_ints(1), x), weight)), op.Mul(second, weight))
    return _like(x, input)


def _taps(size: Any, out: Any, scale: float) -> tuple[Any, Any, Any]:
    """The same as segops.reference.upsample_bilinear.taps, of an axis with a scale; the standard's Resize takes
    float32 scales, of which the size may be one off."""
    op = _op()

    def double(value: float) -> Any:
        return op.Cast(op.Constant(value_float=value), to=_DOUBLE)

    length = op.Cast(size, to=_DOUBLE)
    # In float64, which Constant's attributes do not hold: exactly the sum of two float32.
    step = 1 / scale
    narrow = float(torch.tensor(step, dtype=torch.float32))
    step = op.Min(op.Add(double(narrow), double(step - narrow)), length)
    step = op.Where(op.Equal(size, out), double(1), step)
    at = op.Add(op.Cast(_range(out), to=_DOUBLE), double(0.5))
    source = op.Max(op.Sub(op.Mul(at, step), double(0.5)), double(0))
    last = op.Sub(size, _ints(1))
    low = op.Min(op.Cast(source, to=_INT64), last)
    high = op.Min(op.Add(low, _ints(1)), last)
    return low, high, op.Min(op.Sub(source, op.Cast(low, to=_DOUBLE)), double(1))


def _resized(x: Any, height: Any, width: Any, align_corners: bool) -> Any:
    """Bilinear interpolation where the sizes decide."""
    op = _op()
    sizes = op.Concat(op.Shape(x, start=0, end=2), height, width, axis=0)
    how = "align_corners" if align_corners else "half_pixel"
    return op.Resize(x, None, None, sizes, mode="linear", coordinate_transformation_mode=how)


def _upsample_cat(input: Any, skip: Any, align_corners: bool, skip_first: bool) -> Any:
    up = _like(_resized(_wide(input), _length(skip, 2), _length(skip, 3), align_corners), input)
    return _op().Concat(*((skip, up) if skip_first else (up, skip)), axis=1)


def _upsample_nearest2d(input: Any, height: Any, width: Any, scale_h: float, scale_w: float) -> Any:
    """Which pixels Resize takes where coordinates are nearly whole is the runtime's choice: here they are gathered."""
    op = _op()
    x = input
    for axis, out, scale in ((2, _vector(height), scale_h), (3, _vector(width), scale_w)):
        size = _length(x, axis)
        length = op.Cast(size, to=_FLOAT)
        step = op.Constant(value_float=1 / scale) if scale > 0 else op.Div(length, op.Cast(out, to=_FLOAT))
        at = _range(out)
        source = op.Cast(op.Mul(op.Cast(at, to=_FLOAT), step), to=_INT64)
        source = op.Where(op.Equal(out, op.Mul(size, _ints(2))), op.Div(at, _ints(2)), source)
        source = op.Where(op.Equal(out, size), at, source)
        x = op.Gather(x, op.Min(source, op.Sub(size, _ints(1))), axis=axis)
    return x


def _bed_of_nails2d(input: Any, scale: int) -> Any:
    op = _op()
    images, h, w = op.Shape(input, start=0, end=2), _length(input, 2), _length(input, 3)
    apart = op.Unsqueeze(input, _ints(3, 5))
    padded = op.Pad(apart, _ints(*[0] * 9, scale - 1, 0, scale - 1))
    return op.Reshape(padded, op.Concat(images, op.Mul(h, _ints(scale)), op.Mul(w, _ints(scale)), axis=0))


def _upsample_argmax(
    logits: Any, height: Any, width: Any, align_corners: bool, dtype: int, with_score: bool
) -> tuple[Any, Any]:
    op = _op()
    full = _resized(_wide(logits), _vector(height), _vector(width), align_corners)
    missing = op.Cast(op.IsNaN(full), to=_INT32)
    first = op.ArgMax(missing, axis=1, keepdims=1)  # the first NaN wins
    has_missing = op.Cast(op.ReduceMax(missing, _ints(1), keepdims=1), to=_BOOL)
    labels = op.Where(has_missing, first, op.ArgMax(full, axis=1, keepdims=1))
    axis = _ints(1)
    score = op.Squeeze(op.GatherElements(op.Softmax(full, axis=1), labels, axis=1), axis) if with_score else _ints(0)
    return op.Cast(op.Squeeze(labels, axis), to=dtype), score
