"""dilated_conv2d: a convolution with what usually follows it, in one operator.

Its derivative undoes the epilogue with PyTorch's own operations, from the output where that tells enough and else from
the convolution computed once more, and calls the two gradients of a plain convolution, operators as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from segops import _library, backends
from segops._dtypes import accumulation_dtype
from segops._layout import empty_image
from segops._library import define_op, no_double_backward, refuse_forward_mode
from segops.ops import dilated_conv_arguments as arguments
from segops.ops.upsample_arguments import SIZES
from segops.recompute import kept
from segops.reference import dilated_conv as reference
from segops.reference.dilated_conv import ACTIVATIONS, LEAKY_SLOPE

_PLAIN = (Tensor, torch.nn.Parameter)
_CPU = torch.device("cpu")
_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
_FROM_OUTPUT = (None, "relu", "leaky_relu", "sigmoid")


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    window = rest[5]
    size = (arguments.output_size(input.shape[2 + i], weight.shape[2 + i], *window[i::2]) for i in (0, 1))
    return empty_image(input, weight.shape[0], *size)


def _fake_prepack(weight: Tensor, fast: bool) -> Tensor:
    outputs, inputs = ((size + 15) // 16 * 16 for size in weight.shape[:2])
    return weight.new_empty((36 if fast else 16) * (outputs * inputs + 16) + 32, dtype=torch.float32)


def _fake_grad_input(
    grad_output: Tensor, weight: Tensor, height: Any, width: Any, window: list[int], groups: int, fast: bool
) -> Tensor:
    return empty_image(grad_output, weight.shape[1] * groups, height, width)


def _fake_grad_weight(
    input: Tensor, grad_output: Tensor, weight: Tensor, window: list[int], groups: int, fast: bool
) -> Tensor:
    return input.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, *tensors, ctx.window, ctx.groups, ctx.activation, ctx.fast = inputs
    ctx.rebuild_input, parts = kept(input)
    ctx.input_size = input.shape[2:]
    of_output = None if ctx.activation == 0 else output
    ctx.save_for_backward(*tensors, of_output, *parts)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, bias, scale, shift, residual, slope, output, *parts = ctx.saved_tensors
    names = ("input", "weight", "bias", "scale", "shift", "residual", "slope")
    needs = dict(zip(names, ctx.needs_input_grad[1:8], strict=True))
    options = (ctx.window, ctx.groups, ctx.fast)
    activation = ACTIVATIONS[ctx.activation]
    wide = accumulation_dtype(weight)
    needs_before = needs["slope"] or activation not in _FROM_OUTPUT
    input: Any = ctx.rebuild_input(*parts) if needs["weight"] or needs["scale"] or needs_before else None

    convolved: Any = None  # scale's factor
    before: Any = None  # what the activation was applied to
    if needs["scale"]:
        # float16 may not hold it where it holds what scale makes of it.
        as_wide = wide if weight.dtype == torch.float16 else weight.dtype
        plain = (None, None, None, None, None, ctx.window, ctx.groups, 0, ctx.fast)
        convolved = ops.dilated_conv2d(input.to(as_wide), weight.to(as_wide), *plain).to(wide)
        convolved = convolved if bias is None else convolved + bias[:, None, None]
    if needs_before and needs["scale"]:
        before = convolved * scale[:, None, None]
        before = before if shift is None else before + shift[:, None, None]
        before = before if residual is None else before + residual
    elif needs_before:
        affine = (bias, scale, shift, residual, None, ctx.window, ctx.groups, 0, ctx.fast)
        before = ops.dilated_conv2d(input, weight, *affine).to(wide)
    grad = grad.to(wide)
    grad_slope = None
    if needs["slope"]:
        grad_slope = torch.where(before > 0, 0.0, before * grad).sum((0, 2, 3))
    grad = _before_activation(grad, output, before, slope, activation)

    sums: Any = grad.sum((0, 2, 3)) if needs["bias"] or needs["shift"] else None
    grad_bias = None
    if needs["bias"]:
        grad_bias = sums if scale is None else sums * scale
    grad_scale = (grad * convolved).sum((0, 2, 3)) if needs["scale"] else None
    grad_residual = grad.to(weight.dtype) if needs["residual"] else None
    grad_input = grad_weight = None
    if needs["input"] or needs["weight"]:
        grad = (grad if scale is None else grad * scale[:, None, None]).to(weight.dtype)
        if needs["weight"]:
            grad_weight = ops.dilated_conv2d_grad_weight(input, grad, weight, *options)
        del input  # before as much is allocated again
        if needs["input"]:
            grad_input = ops.dilated_conv2d_grad_input(grad, weight, *ctx.input_size, *options)
    grad_shift = sums if needs["shift"] else None
    return grad_input, grad_weight, grad_bias, grad_scale, grad_shift, grad_residual, grad_slope, None, None, None, None


def _before_activation(
    grad: Tensor, output: Tensor, before: Tensor | None, slope: Tensor | None, activation: str | None
) -> Tensor:
    """The gradient of what the activation was applied to, from its output or from that itself."""
    if activation == "relu":
        return torch.where(output <= 0, 0.0, grad)
    if activation == "leaky_relu":
        return torch.where(output > 0, grad, grad * LEAKY_SLOPE)
    if activation == "sigmoid":
        y = output.to(grad.dtype)
        return grad * y * (1 - y)
    if activation == "prelu":
        assert before is not None
        assert slope is not None
        return torch.where(before > 0, grad, grad * slope[:, None, None])
    if activation == "silu":
        assert before is not None
        y = torch.sigmoid(before)
        return grad * y * (1 + before * (1 - y))
    return grad


define_op(
    "dilated_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual, "
    "Tensor? slope, int[] window, int groups, int activation, bool fast) -> Tensor",
    _fake,
    _save,
    _backward,
)
define_op("dilated_conv2d_prepack(Tensor weight, bool fast) -> Tensor", _fake_prepack)
define_op(
    "dilated_conv2d_prepacked(Tensor input, Tensor weight, Tensor prepacked, Tensor? bias, Tensor? scale, "
    "Tensor? shift, Tensor? residual, Tensor? slope, int[] window, int groups, int activation, bool fast) -> Tensor",
    lambda input, weight, prepacked, *rest: _fake(input, weight, *rest),
)
define_op(
    "dilated_conv2d_grad_input(Tensor grad_output, Tensor weight, SymInt height, SymInt width, int[] window, "
    "int groups, bool fast) -> Tensor",
    _fake_grad_input,
    backward=no_double_backward(arguments.OP),
)
define_op(
    "dilated_conv2d_grad_weight(Tensor input, Tensor grad_output, Tensor weight, int[] window, int groups, bool fast) "
    "-> Tensor",
    _fake_grad_weight,
    backward=no_double_backward(arguments.OP),
)


def dilated_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    slope: Tensor | None = None,
    precision: str = "default",
    prepacked: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""``activation(scale * (conv2d(input, weight) + bias) + shift + residual)``.

    The convolution is that of :func:`torch.nn.functional.conv2d`, as in Yu and Koltun, "Multi-Scale Context Aggregation
    by Dilated Convolutions" (2016), eq. 2, with `scale` and `shift` for a batch norm that is folded or frozen.

    On a CPU a 3x3 convolution with stride 1 and one group, of enough channels and pixels, goes through Winograd's
    algorithm (Lavin and Gray, 2016): at a dilation d, each of d * d interleaved images is convolved without dilation.
    One to a single channel is summed by the definition. All others are PyTorch's own convolution, with one pass over
    its result for what follows. A rule of costs (``csrc/cpu/dilated_conv_method.h``) chooses. 16-bit types are rounded
    once, after all of it: where something follows PyTorch's convolution, that is one of float32 copies. F(4x4, 3x3) is
    always permitted for 16-bit types. Winograd's algorithm takes for each thread 12 MB of scratch, or as many tiles as
    the dilation is wide if these need more, and some rows of 16 channels; besides, the packed weight, which is 16/9 of
    a float32 weight or, with F(4x4, 3x3), four of them.

    Derivatives need the output alone, but for `scale`, `slope` and "silu", where they compute the convolution once
    more. In 16-bit types they read it as rounded to these, like those of PyTorch's layers; that of `scale` in float16
    reads one of float32 copies, since what `scale` brings into the range of float16 may be outside.

    Under autocast, input, weight and residual are cast to its dtype. Differentiable once.

    Args:
        input: [N, C_in, H, W]; float32, float64, bfloat16 or float16; contiguous, channels last, or a slice of one of
            them (anything else is copied once). N may be 0.
        weight: [C_out, C_in / groups, kernel_h, kernel_w] in the dtype of input.
        bias, scale, shift: [C_out] in any floating dtype; used in float32 (float64 with float64 input).
        stride, padding, dilation: an int, or one for each axis; padding also "same" (with stride 1) or "valid".
        groups: of channels that are convolved independently.
        residual: like the output, of any strides.
        activation: None, "relu", "leaky_relu" (slope 0.01), "silu", "sigmoid", or "prelu" with `slope`.
        slope: [C_out], of "prelu".
        precision: "default" has the error of PyTorch's own convolution. "fast" permits, in float32, Winograd's
            F(4x4, 3x3) on a CPU and TF32 on CUDA.
        prepacked: what :func:`prepack` made of this weight, for inference. Used where that is faster, and only without
            gradients.
        backend: see :mod:`segops.backends`.

    Returns:
        [N, C_out, H', W'] in the dtype and the memory format of input.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
        RuntimeError: `prepacked` belongs to another weight, or to this one before it changed.

    Examples:
        >>> image, weight, shift = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), torch.tensor([-5.0])
        >>> output = segops.dilated_conv2d(image, weight, None, 1, 2, 2, shift=shift, activation="relu")
        >>> output[0, 0, 2]
        tensor([1., 1., 4., 1., 1.])
    """
    if backend is None:
        vectors_given = (bias, scale, shift, slope)
        at_once = _at_once(
            input, weight, vectors_given, stride, padding, dilation, groups, residual, activation, precision, prepacked
        )
        if at_once is not None:
            return at_once
    arguments.check_tensors(input, weight, groups, residual=residual, prepacked=prepacked)
    tensors = [input, weight] if residual is None else [input, weight, residual]
    if torch.amp.is_autocast_available(input.device.type) and torch.is_autocast_enabled(input.device.type):
        cast_to = torch.get_autocast_dtype(input.device.type)
        tensors = [t if t.dtype == torch.float64 else t.to(cast_to) for t in tensors]
        prepacked = prepacked if tensors[1] is weight else None
        input, weight = tensors[:2]
        residual = None if residual is None else tensors[2]
    arguments.check_like_input("weight", weight, input)
    if prepacked is not None:
        arguments.check_device("prepacked", prepacked, input)
    strides, dilations = arguments.pair("stride", stride, 1), arguments.pair("dilation", dilation, 1)
    if isinstance(padding, str):
        input, paddings = _named_padding(input, weight, padding, strides, dilations)
    else:
        paddings = arguments.pair("padding", padding, 0)
    window = [*strides, *paddings, *dilations]
    channels = weight.shape[0]
    shape = (input.shape[0], channels, *arguments.check_output_size(input, weight, window))
    vectors = [
        arguments.check_vector(name, t, channels, input)
        for name, t in (("bias", bias), ("scale", scale), ("shift", shift), ("slope", slope))
    ]
    if residual is not None:
        if residual.shape != shape:
            raise ValueError(
                f"segops.{arguments.OP}: residual must be {list(shape)} like the output, got {list(residual.shape)}"
            )
        arguments.check_like_input("residual", residual, input)
    number = arguments.check_activation(activation, slope)
    fast = arguments.check_precision(precision)
    everything: tuple[Any, ...] = (input, weight, *vectors[:3], residual, vectors[3], window, groups, number, fast)
    chosen = backends.resolve(backend, input.device)
    if chosen == "reference":
        plain: Tensor = reference.dilated_conv2d(*everything)
        return plain
    for t in (input, weight, *vectors, residual):
        if t is not None:
            refuse_forward_mode(arguments.OP, t)
    if prepacked is None or chosen != "native" or _is_differentiated(*everything[:7]):
        output: Tensor = backends.run(chosen, "dilated_conv2d", *everything)
    else:
        output = backends.run(chosen, "dilated_conv2d_prepacked", *everything[:2], prepacked, *everything[2:])
    return output


def _at_once(
    input: Any,
    weight: Any,
    vectors: tuple[Any, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    residual: Any,
    activation: Any,
    precision: Any,
    prepacked: Any,
) -> Tensor | None:
    """The common call on a CPU in a fraction of the time: plain tensors, ints, nothing to differentiate or to cast.

    None where it is another, or has an argument that the binding refuses: the full checks then tell what is wrong.
    """
    integers = type(stride) is type(padding) is type(dilation) is type(groups) is int
    if not integers or not (0 < stride < SIZES and 0 <= padding < SIZES and 0 < dilation < SIZES):
        return None
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    graded = torch.is_grad_enabled()
    tensors = (input, weight, *vectors, residual, prepacked)
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or not t.is_cpu or (graded and t.requires_grad)):
            return None
    if input is None or torch.is_autocast_enabled("cpu"):
        return None
    fast = precision == "fast"
    if (not fast and precision != "default") or not (activation is None or type(activation) is str):
        return None
    number = _NUMBERS.get(activation)
    if number is None or backends.resolve(None, _CPU) != "native":
        return None
    window = [stride, stride, padding, padding, dilation, dilation]
    bias, scale, shift, slope = vectors
    rest = (bias, scale, shift, residual, slope, window, groups, number, fast)
    output: Tensor
    try:
        with torch._C._AutoDispatchBelowAutograd():
            if prepacked is None:
                output = torch.ops.segops.dilated_conv2d.default(input, weight, *rest)
            else:
                output = torch.ops.segops.dilated_conv2d_prepacked.default(input, weight, prepacked, *rest)
    except RuntimeError:
        return None
    return output


def _is_differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def prepack(weight: Tensor, precision: str = "default") -> Tensor | None:
    """A weight as Winograd's algorithm multiplies by it on a CPU: the argument `prepacked` of :func:`dilated_conv2d`.

    Packing is a part of the time of a convolution, the larger the smaller the image is. The result takes the memory of
    16/9 of a float32 weight or, with "fast", of four of them. It is good for this very weight alone: each call reads
    the weight, in a small part of the time that packing takes, and compares a checksum of all of it.

    Args:
        weight: [C_out, C_in, 3, 3].
        precision: of the convolutions that it is for.

    Returns:
        A vector of float32, for processors like this one, or None where nothing is to be prepacked: a weight that is
        not 3x3, is float64 or not on a CPU, or a processor without AVX2.

    Raises:
        ValueError: another precision.
    """
    fast = arguments.check_precision(precision)
    on_cpu = weight.device.type == "cpu" and backends.resolve(None, weight.device) == "native"
    if not on_cpu or weight.dtype == torch.float64 or weight.shape[2:] != (3, 3) or _native_isa() == "baseline":
        return None
    packed: Tensor = torch.ops.segops.dilated_conv2d_prepack(weight.detach(), fast)
    return packed


def _native_isa() -> str:
    return "baseline" if _library.native is None else _library.native.cpu_isa()


def _named_padding(
    input: Tensor, weight: Tensor, padding: str, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The input, padded by itself where the two sides differ, and the padding of both sides that is left."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f'segops.{arguments.OP}: padding must be ints, "same" or "valid", got {padding!r}')
    if stride != (1, 1):
        raise ValueError(f'segops.{arguments.OP}: padding="same" must have stride 1, got {stride}')
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    odd_h, odd_w = (t % 2 for t in total)
    if odd_h or odd_w:
        input = F.pad(input, (0, odd_w, 0, odd_h))
    return input, (total[0] // 2, total[1] // 2)
