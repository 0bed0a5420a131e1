"""Where linear interpolation reads: the only statement of it for Triton, sibling of csrc/include/segops/interpolate.h.

Coordinates are float64 on every backend: rounded to float32, a coordinate of a few thousand would put an error of 1e-4
on the weights, and backends would disagree.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from segops.triton.numeric import widen


def linear_step(inputs: int, outputs: int, align_corners: bool, scale: float = 0.0) -> float:
    """Distance between neighbouring outputs, in inputs; `scale` is 0 where the sizes alone decide.

    They do so too where an axis keeps its size. A step of more than all inputs would overflow.
    """
    if align_corners:
        return (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
    return min(1.0 / scale, float(inputs)) if scale > 0 and inputs != outputs else inputs / outputs


def coarse_grid(logits: Tensor, target: Tensor, align_corners: bool) -> tuple[int, int, int, float, float]:
    """Width of the target, height and width of coarse logits, and the steps between pixels in coarse ones."""
    (h, w), (height, width) = logits.shape[-2:], target.shape[-2:]
    return width, h, w, linear_step(h, height, align_corners), linear_step(w, width, align_corners)


def lanes_per_input(inputs: int, outputs: int, most: int) -> int:
    """How many neighbouring outputs a gather reads at a time for one input: about all that read it, a power of 2."""
    return min(most, triton.next_power_of_2(max(1, 2 * outputs // inputs)))


@triton.jit
def linear_tap(i, inputs, step, ALIGN: tl.constexpr):
    """(low, high, weight): output i is (1 - weight) * input[low] + weight * input[high]."""
    at = i.to(tl.float64)
    # One of Python's numbers in the interpreter, which would round it to float32.
    step = tl.full((1,), step, tl.float64)
    if ALIGN:
        source = step * at
    else:
        source = tl.maximum(step * (at + 0.5) - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), inputs - 1)
    return low, tl.minimum(low + 1, inputs - 1), tl.minimum(source - low, 1.0)


@triton.jit
def first_output(low, inputs, outputs, step, ALIGN: tl.constexpr):
    """The first output whose tap has `low` or more as its lower input, or `outputs` if there is none.

    What a division estimates is settled by the taps of its neighbours, so that forward and gather agree on every
    output.
    """
    divisor = tl.full((1,), step, tl.float64)
    if ALIGN:
        estimate = low / divisor
    else:
        estimate = (low + 0.5) / divisor - 0.5
    estimate = tl.where(divisor > 0, tl.minimum(tl.maximum(estimate, 0.0), outputs), outputs)
    first = tl.maximum(estimate.to(tl.int32) - 2, 0)
    begin = first
    for k in tl.static_range(5):
        below, _, _ = linear_tap(begin + k, inputs, step, ALIGN)
        first += ((begin + k < outputs) & (below < low)).to(tl.int32)
    return tl.where(low <= 0, 0, tl.where(low >= inputs, outputs, first))


@triton.jit
def readers(j, inputs, outputs, step, ALIGN: tl.constexpr):
    """The first of the outputs that read input j, and the end of them."""
    return first_output(j - 1, inputs, outputs, step, ALIGN), first_output(j + 1, inputs, outputs, step, ALIGN)


@triton.jit
def weight_of(j, i, inputs, step, ALIGN: tl.constexpr, T: tl.constexpr):
    """What input j counts in output i."""
    low, high, weight = linear_tap(i, inputs, step, ALIGN)
    return (tl.where(low == j, 1.0 - weight, 0.0) + tl.where(high == j, weight, 0.0)).to(T)


@triton.jit
def bilinear_taps(y, x, height, width, stride_h, stride_w, step_h, step_w, ALIGN: tl.constexpr, T: tl.constexpr):
    """Offsets of the rows and columns that outputs (y, x) lie between, and how far they are from the first."""
    top, bottom, down = linear_tap(y, height, step_h, ALIGN)
    left, right, across = linear_tap(x, width, step_w, ALIGN)
    return (
        top.to(tl.int64) * stride_h,
        bottom.to(tl.int64) * stride_h,
        left.to(tl.int64) * stride_w,
        right.to(tl.int64) * stride_w,
        down.to(T),
        across.to(T),
    )


@triton.jit
def blend(rows, taps, mask, T: tl.constexpr):
    """[BLOCK_C, BLOCK_P] interpolated values: `rows` point to planes, `bilinear_taps` are by pixel."""
    top, bottom, left, right, down, across = taps
    at_top = _between(rows, top + left, top + right, across, mask, T)
    at_bottom = _between(rows, bottom + left, bottom + right, across, mask, T)
    return (1.0 - down)[None, :] * at_top + down[None, :] * at_bottom


@triton.jit
def _between(rows, left, right, across, mask, T: tl.constexpr):
    from_left = widen(tl.load(rows[:, None] + left[None, :], mask=mask, other=0.0), T)
    from_right = widen(tl.load(rows[:, None] + right[None, :], mask=mask, other=0.0), T)
    return (1.0 - across)[None, :] * from_left + across[None, :] * from_right
