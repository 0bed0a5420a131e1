"""The operators of `segops.ops.dilated_conv` in Triton, with their schemas' arguments.

Images are read with channels last; planar ones are laid out so first, but for depthwise convolutions.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segops._dtypes import accumulation_dtype
from segops._layout import empty_image
from segops.ops.dilated_conv_arguments import output_size
from segops.triton._runtime import INTERPRETING, computing_dtype, launch
from segops.triton.dilated_conv_kernels import (
    dilated_conv_combine_kernel,
    dilated_conv_direct_kernel,
    dilated_conv_grad_weight_direct_kernel,
    dilated_conv_grad_weight_kernel,
    dilated_conv_kernel,
)

_MOST = 2**31 - 2**12  # pixels that a launch counts in 32 bits
_MANY_PROGRAMS, _LEAST_PIXELS = 264, 512  # of a sum over pixels, and of a part of it
_FEW = 16  # products of a group's channels, below which tiles of a product would be empty
_COMBINED = 1024

# Destinations of an axis, and the sources that they read, as `dilated_conv_kernels` has them.
_Axis = tuple[int, int, int, int, int, int, int, int, int]


def _forward_axis(out: int, kernel: int, stride: int, padding: int, dilation: int) -> _Axis:
    return out, 0, 1, -padding, stride, dilation, kernel, 0, 1


def _phases(out: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Axis]:
    """The axis transposed: destinations that leave the same rest when divided by the stride have the same taps."""
    apart = stride // math.gcd(stride, dilation)
    found = []
    for first in range(min(stride, out)):
        taps = [k for k in range(kernel) if (first + padding - k * dilation) % stride == 0]
        tap = taps[0] if taps else 0
        source = (first + padding - tap * dilation) // stride
        count = -(-(out - first) // stride)
        found.append((count, first, stride, source, 1, -(dilation * apart // stride), len(taps), tap, apart))
    return found


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _block(extent: int, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(extent)))


def _has_few_channels(x: Tensor, channels: int, columns: int) -> bool:
    return x.dtype == torch.float64 or channels * columns < _FEW


def _convolve(
    source: Tensor,
    packed: Tensor,
    destination: Tensor,
    phases: list[tuple[_Axis, _Axis]],
    tap_width: int,
    fast: bool,
    vectors: tuple[Tensor | None, ...] = (None, None, None, None),
    residual: Tensor | None = None,
    activation: int = 0,
) -> Tensor:
    """packed: [groups, taps, channels of the source, of the destination]."""
    groups, taps, channels, columns = packed.shape
    few = _has_few_channels(source, channels, columns)
    source = source if few else _channels_last(source)
    options: dict[str, Any] = {"ACTIVATION": activation, "T": computing_dtype(source), "INTERPRETING": INTERPRETING}
    most = max(1, _MOST // max(1, math.prod(destination.shape[2:])))
    for first, (vertical, horizontal) in itertools.product(range(0, len(source), most), phases):
        images = slice(first, first + most)
        to = destination[images]
        beside = None if residual is None else residual[images]
        pixels = len(to) * vertical[0] * horizontal[0]
        tensors = (source[images], packed, to, *vectors, beside)
        sizes = (*source.shape[2:], tap_width, taps)
        strides = (source.stride(), to.stride(), to.stride() if beside is None else beside.stride())
        if few:
            block_n = min(32, triton.next_power_of_2(groups * columns))
            block_m = 1024 // block_n
            programs = triton.cdiv(pixels, block_m) * triton.cdiv(groups * columns, block_n)
            blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n}
            args = (*tensors, pixels, channels, columns, groups, *sizes, *strides, vertical, horizontal)
            launch(dilated_conv_direct_kernel, programs, source, *args, **options, **blocks)
        else:
            # Float takes twice the room, and more registers where it is exact.
            block_m, block_n = (64, _block(columns, 64)) if source.element_size() == 4 else (128, _block(columns, 128))
            programs = groups * triton.cdiv(pixels, block_m) * triton.cdiv(columns, block_n)
            blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": _block(channels, 128 // source.element_size())}
            args = (*tensors, pixels, channels, columns, *sizes, *strides, vertical, horizontal)
            schedule = {"PRECISION": "tf32" if fast else "ieee", "num_warps": 8 if block_n > 64 else 4, "num_stages": 3}
            launch(dilated_conv_kernel, programs, source, *args, **options, **blocks, **schedule)
    return destination


def _in_groups(weight: Tensor, groups: int) -> Tensor:
    """[groups, K, C, taps]"""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], weight.shape[2] * weight.shape[3])


def dilated_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    slope: Tensor | None,
    window: list[int],
    groups: int,
    activation: int,
    fast: bool,
) -> Tensor:
    kernel = weight.shape[2:]
    _check(input, weight, groups)
    height, width = (output_size(input.shape[2 + i], kernel[i], *window[i::2]) for i in (0, 1))
    output = empty_image(input, weight.shape[0], height, width)
    packed = _in_groups(weight, groups).permute(0, 3, 2, 1).contiguous()
    vertical, horizontal = (_forward_axis(size, kernel[i], *window[i::2]) for i, size in enumerate((height, width)))
    vectors = tuple(v if v is None else v.contiguous() for v in (bias, scale, shift, slope))
    return _convolve(input, packed, output, [(vertical, horizontal)], kernel[1], fast, vectors, residual, activation)


def dilated_conv2d_grad_input(
    grad_output: Tensor, weight: Tensor, height: int, width: int, window: list[int], groups: int, fast: bool
) -> Tensor:
    grad_input = empty_image(grad_output, weight.shape[1] * groups, height, width)
    if grad_output.shape[1] != weight.shape[0]:
        raise RuntimeError(f"segops.dilated_conv2d: no gradient {list(grad_output.shape)} of {list(weight.shape)}")
    packed = _in_groups(weight, groups).permute(0, 3, 1, 2).contiguous()
    vertical, horizontal = (_phases(size, weight.shape[2 + i], *window[i::2]) for i, size in enumerate((height, width)))
    phases = list(itertools.product(vertical, horizontal))
    return _convolve(grad_output, packed, grad_input, phases, weight.shape[3], fast)


def dilated_conv2d_grad_weight(
    input: Tensor, grad_output: Tensor, weight: Tensor, window: list[int], groups: int, fast: bool
) -> Tensor:
    kernel_h, kernel_w = weight.shape[2:]
    channels, columns, taps = input.shape[1] // groups, grad_output.shape[1] // groups, kernel_h * kernel_w
    few = _has_few_channels(input, channels, columns)
    pixels = len(input) * math.prod(grad_output.shape[2:])
    if few:
        block_m, block_n, block_k = 1, min(32, triton.next_power_of_2(groups * columns)), 32
        tiles = triton.cdiv(groups * columns, block_n) * channels * taps
    else:
        input, grad_output = _channels_last(input), _channels_last(grad_output)
        block_m, block_n, block_k = _block(columns, 64), _block(channels, 128), 128 // input.element_size()
        tiles = groups * taps * triton.cdiv(columns, block_m) * triton.cdiv(channels, block_n)
    # By shape alone, so that the order of the sums is.
    parts = min(triton.cdiv(_MANY_PROGRAMS, tiles), triton.cdiv(pixels, _LEAST_PIXELS))
    part = triton.cdiv(triton.cdiv(pixels, max(parts, 1)), block_k) * block_k
    parts = triton.cdiv(pixels, part) if pixels else 1

    shape = (parts, grad_output.shape[1], taps, channels)
    sums = torch.empty(shape, dtype=accumulation_dtype(input), device=input.device)
    numbers = (pixels, part, channels, columns, groups, *input.shape[2:], *grad_output.shape[2:])
    args = (input, grad_output, sums, *numbers, input.stride(), grad_output.stride(), tuple(window), kernel_w, taps)
    options: dict[str, Any] = {"T": computing_dtype(input), "INDEX": tl.int32 if pixels + part < _MOST else tl.int64}
    options |= {"BLOCK_N": block_n, "BLOCK_K": block_k}
    if few:
        launch(dilated_conv_grad_weight_direct_kernel, parts * tiles, input, *args, **options)
    else:
        options |= {"PRECISION": "tf32" if fast else "ieee", "INTERPRETING": INTERPRETING, "BLOCK_M": block_m}
        launch(dilated_conv_grad_weight_kernel, parts * tiles, input, *args, **options, num_stages=3)
    total = torch.empty(sums.shape[1:], dtype=input.dtype, device=input.device)
    count = total.numel()
    launch(
        dilated_conv_combine_kernel,
        triton.cdiv(count, _COMBINED),
        input,
        sums,
        total,
        parts,
        count,
        INTERPRETING=INTERPRETING,
        BLOCK=_COMBINED,
    )
    return total.transpose(1, 2).reshape(grad_output.shape[1], channels, kernel_h, kernel_w).contiguous()


def _check(input: Tensor, weight: Tensor, groups: int) -> None:
    if groups < 1 or input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise RuntimeError(
            f"segops.dilated_conv2d: no convolution of {list(input.shape)} by {list(weight.shape)} in {groups} groups"
        )
