"""dice_bce_loss in Triton: the operators of `segops.ops.dice_bce_loss`, with their schemas' arguments and results.

Deterministic as dice_ce_loss is: how images are cut depends on shapes alone, each program stores its own sums, and one
kernel adds them in a fixed order. The loss made of the sums is `dice_ce_loss_value`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from segops import errors
from segops._dtypes import accumulation_dtype
from segops._layout import empty_like_pixels
from segops.reference.dice_bce_loss import SOFT_LABEL_SLACK
from segops.triton._runtime import INTERPRETING, TRITON_DTYPE, as_rows, contiguous, launch, report
from segops.triton.dice_bce_loss_coarse import dice_bce_loss_coarse_gather_kernel
from segops.triton.dice_bce_loss_tile import (
    dice_bce_loss_backward_kernel,
    dice_bce_loss_statistics_kernel,
    dice_bce_loss_sums_kernel,
)
from segops.triton.interpolate import coarse_grid, lanes_per_input

OP = "dice_bce_loss"
#: Elements of a tile. With neighbouring channels, half as many: the sums of each element stay with its thread.
_TILE, _TILE_ACROSS = 1024, 512
#: Tiles that a program adds up in the computing dtype: few enough that float32 loses nothing to speak of.
_MOST_STEPS = 8
#: Programs that fill a device; more of them only leave more sums to add.
_ENOUGH_PROGRAMS = 2048


class Plan(NamedTuple):
    """Of each image `blocks_c` times `chunks` programs, of `steps` tiles [block_c, block_p]."""

    block_c: int
    block_p: int
    blocks_c: int
    chunks: int
    steps: int


def plan(shape: torch.Size | tuple[int, int, int], across: bool, coarse: bool = False) -> Plan:
    """The cut of [N, C, S], from its shape alone: tiles of neighbouring channels (`across`) or pixels."""
    images, channels, pixels = shape
    tile = _TILE_ACROSS if across else _TILE
    most_channels = 64 if across else 16 if coarse else 1  # where there are pixels enough to fill a tile with them
    wide = min(tile, max(16, triton.next_power_of_2(max(pixels, 1))))
    block_c = min(triton.next_power_of_2(channels), max(most_channels, tile // wide))
    block_p = min(wide, tile // block_c)
    blocks_c, blocks = -(-channels // block_c), -(-pixels // block_p)
    steps = min(_MOST_STEPS, max(1, images * blocks_c * blocks // _ENOUGH_PROGRAMS))
    chunks = -(-blocks // steps)
    return Plan(block_c, block_p, blocks_c, chunks, -(-blocks // chunks) if chunks else 1)


class _Inputs(NamedTuple):
    """Tensors as kernels take them, [N, C, S] and in the logits' layout; coarse logits have pixels of their own."""

    logits: Tensor
    target: Tensor
    pixel_weight: Tensor | None
    pos_weight: Tensor | None
    plan: Plan
    constants: dict[str, Any]
    ignore: float
    accumulate: torch.dtype

    @property
    def weight_stride(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.pixel_weight is None else self.pixel_weight.stride()

    @property
    def programs(self) -> int:
        return self.target.shape[0] * self.plan.blocks_c * self.plan.chunks


def _inputs(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int | None,
    focal_gamma: float,
    squared: bool,
    coarse: bool = False,
) -> _Inputs:
    rows = as_rows(logits)
    across = not coarse and rows.stride(2) != 1
    labels = _rows_like(target.view(torch.uint8) if target.dtype == torch.bool else target, across)
    if pixel_weight is not None:
        pixel_weight = _rows_like(pixel_weight, across and pixel_weight.shape[1] > 1).expand(labels.shape)
    cut = plan(labels.shape, across, coarse)
    accumulate = accumulation_dtype(logits)
    constants = {
        "T": TRITON_DTYPE[accumulate],
        "HAS_IGNORE": ignore_index is not None,
        "SLACK": SOFT_LABEL_SLACK if target.is_floating_point() else 0.0,
        "FOCAL": focal_gamma != 0,
        "SQUARED": squared,
        "BLOCK_C": cut.block_c,
        "BLOCK_P": cut.block_p,
        # Double takes the registers of two floats, as do the taps of an interpolation beside a logit.
        "num_warps": 8 if coarse or accumulate == torch.float64 else 4,
    }
    ignore, pos_weight = float(ignore_index or 0), contiguous(pos_weight)
    return _Inputs(rows, labels, pixel_weight, pos_weight, cut, constants, ignore, accumulate)


def _rows_like(x: Tensor, across: bool) -> Tensor:
    """x as rows, with neighbouring channels (`across`) or pixels; copied if it has the others."""
    rows = as_rows(x)
    if across == (rows.stride(2) != 1) or x.shape[1] == 1:
        return rows
    return as_rows(x.movedim(1, -1).contiguous().movedim(-1, 1) if across else x.contiguous())


def statistics(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int | None,
    focal_gamma: float,
    squared: bool,
    with_overlap: bool,
    with_map: bool,
    on_bad: int,
    align_corners: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``segops_triton::dice_bce_loss_statistics``, and with `align_corners` ``dice_bce_loss_coarse_statistics``.

    Reading the record would wait for a device: there what is to be counted or raised is left to the CUDA library.
    """
    coarse = align_corners is not None
    given = _inputs(logits, target, pos_weight, pixel_weight, ignore_index, focal_gamma, squared, coarse)
    (n, c, pixels), cut = given.target.shape, given.plan

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    overlap = empty((n, 3, c) if with_overlap else (0,), torch.float64)
    bce, bad_labels = empty((2,), torch.float64), empty((3,), torch.int64)
    if with_map and not coarse:
        bce_map = empty_like_pixels(logits, given.accumulate)
    else:
        bce_map = empty(tuple(target.shape) if with_map else (0,), given.accumulate)
    map_rows = as_rows(bce_map) if with_map else None
    partial_overlap = empty((n * cut.chunks, 3, c), given.accumulate) if with_overlap else None
    partial_bce = empty((given.programs, 2), given.accumulate)
    partial_bad = empty((given.programs, 2), torch.int64)
    each = _TILE // (32 * given.constants["num_warps"])  # elements of a full tile that a thread has
    launch(
        dice_bce_loss_statistics_kernel,
        given.programs,
        logits,
        given.logits,
        given.target,
        given.pixel_weight,
        map_rows,
        given.pos_weight,
        partial_overlap,
        partial_bce,
        partial_bad,
        c,
        pixels,
        given.logits.stride(),
        given.target.stride(),
        given.weight_stride,
        (0, 0, 0) if map_rows is None else map_rows.stride(),
        *((1, 1, 1, 0.0, 0.0) if align_corners is None else coarse_grid(logits, target, align_corners)),
        cut.chunks,
        cut.steps,
        given.ignore,
        focal_gamma,
        COARSE=coarse,
        ALIGN=bool(align_corners),
        FOLD=1 if coarse or given.logits.stride(2) != 1 else min(cut.block_p, each),
        **given.constants,
    )
    # Entries side by side, programs in the other direction: enough loads in flight to sum a long column quickly.
    block_e = min(32, triton.next_power_of_2(3 * c))
    groups = -(-3 * c // block_e) if with_overlap else 0
    launch(
        dice_bce_loss_sums_kernel,
        n * groups + 1,
        logits,
        partial_overlap,
        partial_bce,
        partial_bad,
        given.target,
        overlap if with_overlap else None,
        bce,
        bad_labels,
        c,
        max(pixels, 1),
        given.target.stride(),
        cut.chunks,
        given.programs,
        groups,
        BLOCK_R=_TILE // block_e,
        BLOCK_E=block_e,
        BLOCK=512,
        num_warps=4,
    )
    soft, shape = target.is_floating_point(), list(target.shape)
    describe = partial(errors.describe_bad_probabilities, OP, shape=shape, soft=soft, ignore_index=ignore_index)
    report(bad_labels, on_bad, describe, errors.RAISE_SOFT if soft and on_bad == errors.RAISE else on_bad)
    return overlap, bce, bce_map, bad_labels


def backward(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    grad_overlap: Tensor | None,
    grad_bce: Tensor | None,
    ignore_index: int | None,
    focal_gamma: float,
    squared: bool,
    align_corners: bool | None = None,
) -> Tensor:
    """``segops_triton::dice_bce_loss_backward``, and with `align_corners` ``dice_bce_loss_coarse_backward``.

    The gradient of the logits, channels last if they are.
    """
    coarse = align_corners is not None
    given = _inputs(logits, target, pos_weight, pixel_weight, ignore_index, focal_gamma, squared, coarse)
    n, c, pixels = given.logits.shape
    grad_logits = empty_like_pixels(logits)
    grad_rows = as_rows(grad_logits)
    tensors = (
        given.logits,
        given.target,
        given.pixel_weight,
        given.pos_weight,
        contiguous(grad_overlap),
        contiguous(grad_bce),
        grad_rows,
    )
    strides = (given.logits.stride(), given.target.stride(), given.weight_stride, grad_rows.stride())
    if align_corners is None:
        sizes = (c, pixels, *strides, given.plan.chunks, given.plan.steps, given.ignore, focal_gamma)
        constants = given.constants | {"INTERPRETING": INTERPRETING}
        launch(dice_bce_loss_backward_kernel, given.programs, logits, *tensors, *sizes, **constants)
        return grad_logits
    width, h, w, *steps = coarse_grid(logits, target, align_corners)
    # Pixels side by side, for as many coarse pixels as there is room for: a thread has the taps of two lanes at most.
    lanes = min(given.plan.block_p, 512)
    block_x = lanes_per_input(w, width, lanes)
    block_p = min(lanes // block_x, triton.next_power_of_2(pixels))
    chunks = -(-pixels // block_p)
    constants = given.constants | {"BLOCK_P": block_p, "BLOCK_X": block_x, "ALIGN": align_corners}
    sizes = (c, target.shape[2], width, h, w, *strides, *steps, chunks, given.ignore, focal_gamma)
    programs = n * given.plan.blocks_c * chunks
    launch(
        dice_bce_loss_coarse_gather_kernel, programs, logits, *tensors, *sizes, **constants, INTERPRETING=INTERPRETING
    )
    return grad_logits
