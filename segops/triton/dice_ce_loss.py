"""dice_ce_loss in Triton: the operators of `segops.ops.dice_ce_loss`, with their schemas' arguments and results.

Deterministic: how an image is cut depends on shapes alone, each program stores its own sums, and one kernel adds them
in a fixed order; the only atomics count integers. No autotuning: two configurations would round differently, and a
kernel that streams memory has little to gain, so the tile follows from dtype and class count.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from segops import errors
from segops._dtypes import accumulation_dtype
from segops._layout import empty_like_pixels
from segops.triton._runtime import INTERPRETING, TRITON_DTYPE, as_rows, contiguous, launch, report
from segops.triton.dice_ce_loss_coarse import dice_ce_loss_coarse_gather_kernel
from segops.triton.dice_ce_loss_sweep import (
    dice_ce_loss_backward_sweep_kernel,
    dice_ce_loss_coarse_softmax_kernel,
    dice_ce_loss_statistics_sweep_kernel,
)
from segops.triton.dice_ce_loss_tile import dice_ce_loss_backward_tile_kernel, dice_ce_loss_statistics_tile_kernel
from segops.triton.dice_ce_loss_value import dice_ce_loss_sums_kernel, dice_ce_loss_value_kernel
from segops.triton.interpolate import coarse_grid, lanes_per_input

OP = "dice_ce_loss"
#: With more classes than this, a tile of all of them does not fit into registers.
MOST_TILE_CLASSES = 64
#: Tiles that a program adds up in the computing dtype: few enough that float32 loses nothing to speak of.
_MOST_STEPS = 8
#: Above this many pairs of classes, a confusion matrix does not fit into shared memory.
_MOST_BINS = 1024


class Plan(NamedTuple):
    """How the pixels of an image are shared out: `chunks` programs of `steps` tiles [block_c, block_p]."""

    block_c: int
    block_p: int
    fold: int
    num_warps: int
    chunks: int
    steps: int

    @property
    def is_tile(self) -> bool:
        return self.steps > 0


def plan(classes: int, pixels: int, itemsize: int, channels_last: bool) -> Plan:
    """The cut of an image, from its shape and dtype alone. The sweep over many classes has ``steps == 0``."""
    vector = 16 // itemsize
    is_tile = classes <= MOST_TILE_CLASSES
    # Planar, a row of a tile fills a warp with 16-byte accesses. Channels last, the lanes of a warp share out classes,
    # so that a thread keeps the state of more pixels; then half the pixels are all that registers hold.
    elements = 2048 if channels_last else 4096
    row = 32 if channels_last else 32 * vector
    block_c = triton.next_power_of_2(classes) if is_tile else 2048 // row
    block_p = min(512, max(elements // block_c, row if block_c <= 32 else row // 2)) if is_tile else row
    num_warps = min(16, max(4, block_c * block_p * 8 // elements)) if is_tile else 8
    blocks = -(-pixels // block_p)
    chunks = -(-blocks // _MOST_STEPS) if is_tile else blocks
    steps = -(-blocks // chunks) if is_tile and chunks else int(is_tile)
    return Plan(block_c, block_p, block_p if channels_last else vector, num_warps, chunks, steps)


def coarse_plan(classes: int, pixels: int) -> Plan:
    """The same for coarse logits, which go through the sweep whatever the number of classes."""
    block_c = min(MOST_TILE_CLASSES, triton.next_power_of_2(classes))
    block_p = min(512, 1024 // block_c)
    return Plan(block_c, block_p, 1, 4, -(-pixels // block_p), 0)


class _Inputs(NamedTuple):
    logits: Tensor  # [N, C, S]
    target: Tensor
    weight: Tensor | None
    pixel_weight: Tensor | None
    pixels: int  # of an image of the target
    plan: Plan

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.logits, self.target, self.weight, self.pixel_weight

    @property
    def programs(self) -> int:
        return self.logits.shape[0] * self.plan.chunks


def _inputs(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, coarse: bool = False
) -> _Inputs:
    rows, classes, pixels = as_rows(logits), logits.shape[1], math.prod(target.shape[1:])
    cut = coarse_plan(classes, pixels) if coarse else plan(classes, pixels, logits.element_size(), rows.stride(2) != 1)
    return _Inputs(
        rows,
        target.contiguous(),
        contiguous(weight),
        contiguous(pixel_weight),
        pixels,
        cut,
    )


def statistics(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    squared: bool,
    with_overlap: bool,
    with_confusion: bool,
    with_map: bool,
    on_bad: int,
    align_corners: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``segops_triton::dice_ce_loss_statistics``, and with `align_corners` ``dice_ce_loss_coarse_statistics``.

    Reading the record would wait for a device: there what is to be counted or raised is left to the CUDA library.
    """
    coarse = align_corners is not None
    given = _inputs(logits, target, weight, pixel_weight, coarse)
    (n, c), cut = given.logits.shape[:2], given.plan
    accumulate = accumulation_dtype(logits)

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    overlap = empty((n, 3, c) if with_overlap else (0,), torch.float64)
    ce = empty((2,), torch.float64)
    ce_map = empty(tuple(target.shape) if with_map else (0,), accumulate)
    confusion = torch.zeros((c, c) if with_confusion else (0,), dtype=torch.int64, device=logits.device)
    bad_labels = empty((3,), torch.int64)
    partial_overlap = empty((given.programs, 3, c), accumulate) if with_overlap else None
    partial_ce = empty((given.programs, 2), accumulate)
    partial_bad = empty((given.programs, 2), torch.int64)

    bins = triton.next_power_of_2(c * c) if with_confusion else 0
    tile = {"FOLD": cut.fold, "BINS": max(bins, 2) if 0 < bins <= _MOST_BINS else 0}
    grid = (1, 1, 1, 0.0, 0.0) if align_corners is None else coarse_grid(logits, target, align_corners)
    sweep = {"COARSE": coarse, "ALIGN": bool(align_corners)}
    launch(
        dice_ce_loss_statistics_tile_kernel if cut.is_tile else dice_ce_loss_statistics_sweep_kernel,
        given.programs,
        logits,
        *given.tensors,
        ce_map if with_map else None,
        confusion if with_confusion else None,
        partial_overlap,
        partial_ce,
        partial_bad,
        c,
        given.pixels,
        given.logits.stride(),
        *((cut.chunks, cut.steps) if cut.is_tile else (*grid, cut.chunks)),
        ignore_index,
        label_smoothing,
        **_constants(cut, accumulate, label_smoothing, squared),
        **(tile if cut.is_tile else sweep),
    )
    # Entries side by side, programs in the other direction: enough loads in flight to sum a long column quickly.
    block_e = 32
    groups = -(-3 * c // block_e) if with_overlap else 0
    launch(
        dice_ce_loss_sums_kernel,
        n * groups + 1,
        logits,
        partial_overlap,
        partial_ce,
        partial_bad,
        given.target,
        overlap if with_overlap else None,
        ce,
        bad_labels,
        3 * c,
        cut.chunks,
        given.programs,
        groups,
        BLOCK_R=32,
        BLOCK_E=block_e,
        BLOCK=512,
        num_warps=4,
    )
    shape = list(target.shape)
    describe = partial(errors.describe_bad_labels, OP, shape=shape, classes=c, ignore_index=ignore_index)
    report(bad_labels, on_bad, describe)
    return overlap, ce, ce_map, confusion, bad_labels


def backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    grad_overlap: Tensor | None,
    grad_ce: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    squared: bool,
) -> Tensor:
    """``segops_triton::dice_ce_loss_backward``: the gradient of the logits, channels last if they are."""
    given = _inputs(logits, target, weight, pixel_weight)
    cut = given.plan
    accumulate = accumulation_dtype(logits)
    grad_logits = empty_like_pixels(logits)
    grad_rows = as_rows(grad_logits)
    launch(
        dice_ce_loss_backward_tile_kernel if cut.is_tile else dice_ce_loss_backward_sweep_kernel,
        given.programs,
        logits,
        *given.tensors,
        contiguous(grad_overlap),
        contiguous(grad_ce),
        grad_rows,
        logits.shape[1],
        given.pixels,
        given.logits.stride(),
        grad_rows.stride(),
        cut.chunks,
        *((cut.steps,) if cut.is_tile else ()),
        ignore_index,
        label_smoothing,
        **_constants(cut, accumulate, label_smoothing, squared),
        INTERPRETING=INTERPRETING,
    )
    return grad_logits


def coarse_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    grad_overlap: Tensor | None,
    grad_ce: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    squared: bool,
    align_corners: bool,
) -> Tensor:
    """``segops_triton::dice_ce_loss_coarse_backward``; it needs four numbers a pixel of the target for a while.

    One kernel prepares the softmax of each pixel, the other adds up for each coarse logit the gradients of the pixels
    that read it.
    """
    given = _inputs(logits, target, weight, pixel_weight, coarse=True)
    n, c, coarse_pixels = given.logits.shape
    cut, accumulate = given.plan, accumulation_dtype(logits)
    softmax = torch.empty((4, *target.shape), dtype=accumulate, device=logits.device)
    width, *grid = coarse_grid(logits, target, align_corners)
    tensors = (
        *given.tensors,
        contiguous(grad_overlap),
        contiguous(grad_ce),
        softmax,
    )
    block_x = lanes_per_input(logits.shape[3], width, cut.block_p)
    block_p = cut.block_p // block_x
    constants = {"ALIGN": align_corners, **_constants(cut, accumulate, label_smoothing, squared)}
    launch(
        dice_ce_loss_coarse_softmax_kernel,
        given.programs,
        logits,
        *tensors,
        c,
        given.pixels,
        target.numel(),
        given.logits.stride(),
        width,
        *grid,
        cut.chunks,
        ignore_index,
        label_smoothing,
        **constants,
    )
    grad_logits = empty_like_pixels(logits)
    grad_rows = as_rows(grad_logits)
    chunks = -(-coarse_pixels // block_p)
    (h, w), steps = grid[:2], grid[2:]
    launch(
        dice_ce_loss_coarse_gather_kernel,
        n * chunks * -(-c // cut.block_c),
        logits,
        *tensors,
        grad_rows,
        c,
        *target.shape[1:],
        h,
        w,
        target.numel(),
        given.logits.stride(),
        grad_rows.stride(),
        *steps,
        chunks,
        ignore_index,
        label_smoothing,
        **constants | {"BLOCK_P": block_p, "BLOCK_X": block_x},
        INTERPRETING=INTERPRETING,
    )
    return grad_logits


def _constants(cut: Plan, accumulate: torch.dtype, label_smoothing: float, squared: bool) -> dict[str, Any]:
    return {
        "T": TRITON_DTYPE[accumulate],
        "SMOOTHING": label_smoothing != 0,
        "SQUARED": squared,
        "BLOCK_C": cut.block_c,
        "BLOCK_P": cut.block_p,
        "num_warps": cut.num_warps,
    }


def value(
    overlap: Tensor,
    ce: Tensor,
    dice_class_weight: Tensor | None,
    num_i: float,
    den_i: float,
    den_p: float,
    den_t: float,
    smooth: float,
    ce_weight: float,
    dice_weight: float,
    batch_dice: bool,
    include_background: bool,
    skip_absent: bool,
    ce_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``segops_triton::dice_ce_loss_value``."""
    with_overlap = overlap.ndim == 3
    images, classes = (overlap.shape[0], overlap.shape[2]) if with_overlap else (0, 0)
    rows = 1 if with_overlap and batch_dice else images
    loss, parts, scores = overlap.new_empty(()), overlap.new_empty((2,)), overlap.new_empty((rows, classes))
    grad_overlap = torch.empty_like(overlap, memory_format=torch.contiguous_format)
    grad_ce = overlap.new_empty((2,))
    launch(
        dice_ce_loss_value_kernel,
        1,
        overlap,
        overlap.contiguous() if with_overlap else None,
        ce.contiguous(),
        contiguous(dice_class_weight),
        loss,
        parts,
        scores,
        grad_overlap,
        grad_ce,
        classes,
        rows,
        images if batch_dice else 1,
        num_i,
        den_i,
        den_p,
        den_t,
        smooth,
        ce_weight,
        dice_weight,
        WITH_CE=ce_weight != 0,
        WITH_DICE=with_overlap and dice_weight != 0,
        INCLUDE_BACKGROUND=include_background,
        SKIP_ABSENT=skip_absent,
        CE_MEAN=ce_mean,
        BLOCK=128,
        num_warps=4,
    )
    return loss, parts, scores, grad_overlap, grad_ce
