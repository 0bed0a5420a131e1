"""max_pool2d, which stores where in its window each maximum is, and max_unpool2d, which puts values back there.

Pooling's derivative is unpooling that adds; unpooling's is the choice of one element for each window, and that one's is
unpooling again, so that all of them are differentiable as often as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segops import backends, errors
from segops._layout import check_dense, empty_image
from segops._library import define_op, refuse_forward_mode
from segops.ops import max_unpool_arguments as arguments
from segops.recompute import remember
from segops.reference import max_unpool as reference

_UNPOOL = "max_unpool2d"
Numbers = int | Sequence[int]


def _fake_pool(input: Tensor, window: list[int], ceil_mode: bool) -> tuple[Tensor, Tensor]:
    c = input.shape[1]
    h = arguments.pooled_length(input.shape[2], window[::2], ceil_mode)
    w = arguments.pooled_length(input.shape[3], window[1::2], ceil_mode)
    return empty_image(input, c, h, w), empty_image(input, c, h, w, torch.uint8)


def _fake_unpool(
    input: Tensor, indices: Tensor, height: int, width: int, window: list[int], accumulate: bool, on_bad: int
) -> tuple[Tensor, Tensor]:
    return empty_image(input, input.shape[1], height, width), input.new_empty(3, dtype=torch.int64)


def _fake_unpool_backward(grad_output: Tensor, indices: Tensor, window: list[int], accumulate: bool) -> Tensor:
    return empty_image(grad_output, *indices.shape[1:])


def _fake_flat(
    input: Tensor, indices: Tensor, height: int, width: int, accumulate: bool, on_bad: int
) -> tuple[Tensor, Tensor]:
    return empty_image(input, input.shape[1], height, width), input.new_empty(3, dtype=torch.int64)


def _fake_flat_backward(grad_output: Tensor, indices: Tensor) -> Tensor:
    return empty_image(grad_output, *indices.shape[1:])


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, ctx.window, _ = inputs
    ctx.size = input.shape[2:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _pool_backward(ops: Any, ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
    (indices,) = ctx.saved_tensors
    return ops.max_unpool2d(grad, indices, *ctx.size, ctx.window, True, errors.RECORD)[0], None, None


def _save_unpool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, indices, _, _, ctx.window, ctx.accumulate, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(indices)


def _unpool_backward(ops: Any, ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    (indices,) = ctx.saved_tensors
    return ops.max_unpool2d_backward(grad, indices, ctx.window, ctx.accumulate), *(None,) * 6


def _save_unpool_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, indices, ctx.window, ctx.accumulate = inputs
    ctx.size = grad_output.shape[2:]
    ctx.save_for_backward(indices)


def _unpool_backward_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    unpooled, _ = ops.max_unpool2d(grad, indices, *ctx.size, ctx.window, ctx.accumulate, errors.RECORD)
    return unpooled, None, None, None


def _save_flat(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[1])


def _flat_backward(ops: Any, ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 6
    (indices,) = ctx.saved_tensors
    return ops.max_unpool2d_flat_backward(grad, indices), *(None,) * 5


def _save_flat_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, indices = inputs
    ctx.size = grad_output.shape[2:]
    ctx.save_for_backward(indices)


def _flat_backward_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return ops.max_unpool2d_flat(grad, indices, *ctx.size, True, errors.RECORD)[0], None


define_op(
    "max_pool2d(Tensor input, int[] window, bool ceil_mode) -> (Tensor output, Tensor indices)",
    _fake_pool,
    _save_pool,
    _pool_backward,
)
define_op(
    "max_unpool2d(Tensor input, Tensor indices, SymInt height, SymInt width, int[] window, bool accumulate, "
    "int on_bad) -> (Tensor output, Tensor bad_indices)",
    _fake_unpool,
    _save_unpool,
    _unpool_backward,
)
define_op(
    "max_unpool2d_backward(Tensor grad_output, Tensor indices, int[] window, bool accumulate) -> Tensor",
    _fake_unpool_backward,
    _save_unpool_backward,
    _unpool_backward_backward,
)
define_op(
    "max_unpool2d_flat(Tensor input, Tensor indices, SymInt height, SymInt width, bool accumulate, int on_bad) "
    "-> (Tensor output, Tensor bad_indices)",
    _fake_flat,
    _save_flat,
    _flat_backward,
)
define_op(
    "max_unpool2d_flat_backward(Tensor grad_output, Tensor indices) -> Tensor",
    _fake_flat_backward,
    _save_flat_backward,
    _flat_backward_backward,
)


def max_pool2d(
    input: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`torch.nn.functional.max_pool2d` with indices of one byte: where in its own window each maximum is.

    The winner is torch's: the first maximum in row-major order, or the last NaN if there is one. Its index is
    ``ky * kernel_w + kx``, an eighth of the memory of torch's int64, which :func:`local_to_flat_indices` gives back.
    Only the indices are kept for the backward pass, not the input. The gradient of an element is the sum over the
    windows that it is the maximum of, in row-major order, accumulated in float32 (float64 for float64).

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16, float16, uint8, int8, int16, int32 or int64;
            contiguous, channels last, or a slice of one of them (anything else is copied once). N may be 0.
        kernel_size, stride, padding, dilation: one int, or one for each dimension; windows have at most 256 elements.
            stride None is kernel_size. Padding counts as smaller than everything.
        ceil_mode: whether windows may reach over the end of the padded input.
        backend: see :mod:`segops.backends`.

    Returns:
        The maxima [N, C, h, w] in the dtype and the memory format of the input, and their indices, uint8 [N, C, h, w].

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or range.

    Examples:
        >>> segops.max_pool2d(torch.tensor([[[[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]]]), 2)
        (tensor([[[[2., 3.]]]]), tensor([[[[1, 2]]]], dtype=torch.uint8))
    """
    op = "max_pool2d"
    errors.raise_arrived()
    arguments.check_image(op, "input", input)
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"segops.{op}: ceil_mode must be a bool, got {type(ceil_mode).__name__}")
    window = arguments.window_of(op, kernel_size, stride, padding, dilation)
    arguments.check_taps(op, window)
    arguments.check_pooled(op, input.shape[-2:], window, ceil_mode)
    chosen = backends.resolve(backend, input.device)
    images = input if input.ndim == 4 else input.unsqueeze(0)
    if chosen == "reference":
        wide = images.float() if input.dtype.is_floating_point and input.dtype.itemsize == 2 else images
        output, indices = reference.max_pool2d(wide, window, ceil_mode)
        memory_format = suggest_memory_format(images)
        output = output.to(input.dtype).contiguous(memory_format=memory_format)
        indices = indices.contiguous(memory_format=memory_format)
    else:
        refuse_forward_mode(op, input)
        output, indices = backends.run(chosen, "max_pool2d", images, window, ceil_mode)
    return (output, indices) if input.ndim == 4 else (output.squeeze(0), indices.squeeze(0))


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    output_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The inverse of max-pooling: each value where its index says, zeros elsewhere.

    With uint8 indices (:func:`max_pool2d`'s, positions in windows) each output is written once, from the windows that
    reach it. With int64 ones (positions ``y * W + x`` in planes, which may be any) it is
    :func:`torch.nn.functional.max_unpool2d`.

    Where overlapping windows point at one output, the value of the latest window in row-major order stands, on every
    backend (they are all equal where they come from pooling). The gradient goes to that window alone for uint8 indices,
    which is the derivative; for int64 ones it goes to all of them, as in torch. Twice differentiable.

    Args:
        input: [N, C, h, w] or [C, h, w], in any dtype of :func:`max_pool2d`; contiguous, channels last, or a slice of
            one of them (anything else is copied once). N may be 0.
        indices: uint8 or int64, of the input's shape.
        kernel_size, stride, padding, dilation: those of the pooling.
        output_size: H and W before pooling (or a shape that ends in them): any from which pooling can have come,
            or that torch takes; by default (h - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1.
        backend: see :mod:`segops.backends`.

    Returns:
        [N, C, H, W] in the dtype and the memory format of the input.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; an index outside its
            window or the output (on CUDA by a later call or :func:`segops.check_errors`; it is dropped meanwhile).
            RuntimeError for such an index inside a compiled graph on a CPU.

    Examples:
        >>> segops.max_unpool2d(torch.tensor([[[[2.0, 3.0]]]]), torch.tensor([[[[1, 2]]]], dtype=torch.uint8), 2)
        tensor([[[[0., 2., 0., 0.],
                  [0., 0., 3., 0.]]]])
    """
    errors.raise_arrived()
    arguments.check_image(_UNPOOL, "input", input)
    arguments.check_indices(_UNPOOL, indices, input)
    window = arguments.window_of(_UNPOOL, kernel_size, stride, padding, dilation)
    height, width = arguments.unpooled_size(_UNPOOL, input.shape[-2:], window, output_size)
    local = indices.dtype == torch.uint8
    if local:
        arguments.check_taps(_UNPOOL, window)
    chosen = backends.resolve(backend, input.device)
    batched = (input, indices) if input.ndim == 4 else (input.unsqueeze(0), indices.unsqueeze(0))
    kernel = window[:2] if local else (0, 0)
    if chosen == "reference":
        output = _unpool_by_definition(*batched, height, width, window)
    else:
        refuse_forward_mode(_UNPOOL, input)
        how = errors.on_bad("raise", input)
        if local:
            output, bad = backends.run(chosen, "max_unpool2d", *batched, height, width, window, False, how)
        else:
            output, bad = backends.run(chosen, "max_unpool2d_flat", *batched, height, width, False, how)
        errors.raise_bad_indices(_UNPOOL, bad, batched[1], (height, width), kernel)
    if input.ndim == 3:
        return output.squeeze(0)

    def again(values: Tensor, positions: Tensor) -> Tensor:
        size = (height, width)
        return max_unpool2d(values, positions, kernel_size, stride, padding, dilation, size, backend=backend)

    return remember(output, again, input, indices)


def local_to_flat_indices(
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
) -> Tensor:
    """torch's indices ``y * W + x`` of :func:`max_pool2d`'s.

    Args:
        indices: uint8 [..., h, w].
        input_size: (H, W) before pooling.
        kernel_size, stride, padding, dilation: those of the pooling.

    Returns:
        int64 [..., h, w].

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or range; an index outside its window or the
            input (on CUDA by a later call or :func:`segops.check_errors`; inside compiled graphs it becomes -1).

    Examples:
        >>> segops.local_to_flat_indices(torch.tensor([[1, 2]], dtype=torch.uint8), (2, 4), 2)
        tensor([[1, 6]])
    """
    op = "local_to_flat_indices"
    window, (height, width) = _conversion(op, indices, torch.uint8, input_size, kernel_size, stride, padding, dilation)
    tap = indices.to(torch.int64)
    rows, columns = _first_taps(indices, window)
    y = rows + tap // window[1] * window[6]
    x = columns + tap % window[1] * window[7]
    bad = (tap >= window[0] * window[1]) | (y < 0) | (y >= height) | (x < 0) | (x >= width)
    _raise_where(op, bad, indices, (height, width), window[:2])
    return torch.where(bad, -1, y * width + x)


def flat_to_local_indices(
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
) -> Tensor:
    """:func:`max_pool2d`'s indices of torch's.

    Args:
        indices: int64 [..., h, w], as torch.nn.functional.max_pool2d returns them.
        input_size: (H, W) before pooling.
        kernel_size, stride, padding, dilation: those of the pooling.

    Returns:
        uint8 [..., h, w].

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or range; an index that is no element of its
            window (on CUDA by a later call or :func:`segops.check_errors`; inside compiled graphs it becomes 255).

    Examples:
        >>> segops.flat_to_local_indices(torch.tensor([[1, 6]]), (2, 4), 2)
        tensor([[1, 2]], dtype=torch.uint8)
    """
    op = "flat_to_local_indices"
    window, (height, width) = _conversion(op, indices, torch.int64, input_size, kernel_size, stride, padding, dilation)
    rows, columns = _first_taps(indices, window)
    y, x = indices // width - rows, indices % width - columns
    ky, kx = y // window[6], x // window[7]
    bad = (indices < 0) | (indices >= height * width) | (y % window[6] != 0) | (x % window[7] != 0)
    bad = bad | (ky < 0) | (ky >= window[0]) | (kx < 0) | (kx >= window[1])
    _raise_where(op, bad, indices, (height, width), window[:2])
    return torch.where(bad, arguments.MOST_TAPS - 1, ky * window[1] + kx).to(torch.uint8)


def _conversion(
    op: str, indices: Any, dtype: torch.dtype, input_size: Any, *sizes: Any
) -> tuple[arguments.Window, tuple[Any, Any]]:
    errors.raise_arrived()
    check_dense(op, "indices", indices)
    if indices.dtype != dtype:
        raise TypeError(f"segops.{op}: indices must be {str(dtype).removeprefix('torch.')}, got {indices.dtype}")
    if indices.ndim < 2:
        raise ValueError(f"segops.{op}: indices must be [..., h, w], got {list(indices.shape)}")
    window = arguments.window_of(op, *sizes)
    arguments.check_taps(op, window)
    return window, arguments.input_size_of(op, input_size)


def _first_taps(indices: Tensor, window: arguments.Window) -> tuple[Tensor, Tensor]:
    """Row [h, 1] and column [w] of the first tap of each window."""
    h, w = indices.shape[-2:]
    rows = torch.arange(h, device=indices.device) * window[2] - window[4]
    return rows[:, None], torch.arange(w, device=indices.device) * window[3] - window[5]


def _raise_where(op: str, bad: Tensor, indices: Tensor, size: tuple[Any, Any], kernel: Sequence[int]) -> None:
    if bad.numel() == 0:
        return
    position = bad.flatten().to(torch.uint8).argmax()
    value = indices.flatten().index_select(0, position.view(1))[0].to(torch.int64)
    record = torch.stack((bad.sum(), position, value))
    errors.raise_bad_indices(op, record, indices, size, kernel)


def _unpool_by_definition(input: Tensor, indices: Tensor, height: int, width: int, window: arguments.Window) -> Tensor:
    local = indices.dtype == torch.uint8
    flat = reference.local_to_flat(indices, height, width, window) if local else indices
    bad = (flat < 0) | (flat >= height * width)
    if not torch.compiler.is_compiling():
        _raise_where(_UNPOOL, bad, indices, (height, width), window[:2] if local else (0, 0))
    unpool = reference.max_unpool2d if local else reference.max_unpool2d_flat
    output: Tensor = unpool(input, flat.masked_fill(bad, -1), height, width)
    return output.contiguous(memory_format=suggest_memory_format(input))
