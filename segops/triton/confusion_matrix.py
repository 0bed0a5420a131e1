"""confusion_matrix in Triton, with the arguments of the operator.

A program takes `steps` blocks of pixels of one image. It counts in registers and shared memory as long as the matrix is
small enough, and adds its counts to the results, which are integers: the order of atomics changes nothing.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from segops import errors
from segops.triton._runtime import as_rows, computing_dtype, launch, report
from segops.triton.dice_ce_loss_tile import first_largest, image_of_program, store_bad_labels
from segops.triton.numeric import widen

OP = "confusion_matrix"
#: Above this many pairs of classes, counts do not fit into shared memory.
_MOST_BINS = 1024
_MOST_STEPS = 8


@triton.jit
def _known_labels(target, at, inside, classes, ignore_index, HAS_IGNORE: tl.constexpr):
    """Labels as int64, whether they are classes, and whether they are neither that nor ignored."""
    raw = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    kept = inside
    if HAS_IGNORE:
        kept &= raw != ignore_index
    is_class = (raw >= 0) & (raw < classes)
    return raw, kept & is_class, kept & (is_class == 0)


@triton.jit
def _count(counts, counted, cell, keep, BINS: tl.constexpr):
    """Adds a block's cells: to `counted`, which is returned, or to the results."""
    if BINS > 0:
        return counted + tl.histogram(cell.to(tl.int32), BINS, mask=keep)
    else:
        tl.atomic_add(counts + cell, tl.full(cell.shape, 1, tl.int64), mask=keep, sem="relaxed")
        return counted


@triton.jit
def _add_counts(counts, counted, BINS: tl.constexpr):
    if BINS > 0:
        tl.atomic_add(counts + tl.arange(0, BINS), counted.to(tl.int64), mask=counted > 0, sem="relaxed")


@triton.jit(do_not_specialize=["steps", "chunks", "ignore_index"])
def confusion_matrix_logits_kernel(
    logits,  # [N, C, S] by strides
    target,  # [N, S]
    counts,  # int64 [C, C], zeroed
    partial_bad,  # int64 [programs, 2]
    classes,
    pixels,
    stride,
    chunks,
    steps,
    ignore_index: tl.int64,
    T: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BINS: tl.constexpr,  # at least C * C, and 2; or 0: count pixel by pixel
):
    program = tl.program_id(0).to(tl.int64)
    n, begin = image_of_program(chunks, steps * BLOCK_P)
    lanes = tl.arange(0, BLOCK_P)
    counted = tl.zeros((max(BINS, 2),), tl.int32)
    bad_count = tl.zeros((BLOCK_P,), tl.int32)
    bad_first = tl.full((BLOCK_P,), 0x7FFFFFFF, tl.int32)
    for step in range(steps):
        first = begin + step * BLOCK_P
        inside = lanes < pixels - first
        label, keep, bad = _known_labels(target, n * pixels + first + lanes, inside, classes, ignore_index, HAS_IGNORE)
        bad_count += bad.to(tl.int32)
        bad_first = tl.minimum(bad_first, tl.where(bad, step * BLOCK_P + lanes, 0x7FFFFFFF))

        row = logits + n * stride[0] + (first + lanes) * stride[2]
        best = tl.full((BLOCK_P,), float("-inf"), T)
        best_is_nan = tl.zeros((BLOCK_P,), tl.int32)
        winner = tl.zeros((BLOCK_P,), tl.int32)
        for start in range(0, classes, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            mask = (c < classes)[:, None] & inside[None, :]
            x = tl.load(row[None, :] + (c.to(tl.int64) * stride[1])[:, None], mask=mask, other=float("-inf"))
            x = widen(x, T)
            nan = x != x
            top = tl.max(tl.where(nan, float("inf"), x), axis=0)
            top_is_nan = tl.max(nan.to(tl.int32), axis=0)
            better = ((top > best) | (top_is_nan > 0)) & (best_is_nan == 0)
            winner = tl.where(better, first_largest(x, c), winner)
            best = tl.where(better, top, best)
            best_is_nan |= top_is_nan
        counted = _count(counts, counted, label * classes + winner, keep, BINS)
    store_bad_labels(partial_bad, program, bad_count, bad_first, begin, n * pixels)
    _add_counts(counts, counted, BINS)


@triton.jit(do_not_specialize=["steps", "ignore_index"])
def confusion_matrix_classes_kernel(
    prediction,  # [S]
    target,  # [S]
    counts,  # int64 [C, C], zeroed
    partial_bad,  # int64 [2, programs, 2]: labels, predictions
    classes,
    pixels,
    steps,
    ignore_index: tl.int64,
    HAS_IGNORE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BINS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    begin = program * steps * BLOCK_P
    lanes = tl.arange(0, BLOCK_P)
    counted = tl.zeros((max(BINS, 2),), tl.int32)
    bad_count = tl.zeros((BLOCK_P,), tl.int32)
    bad_first = tl.full((BLOCK_P,), 0x7FFFFFFF, tl.int32)
    wrong_count = tl.zeros((BLOCK_P,), tl.int32)
    wrong_first = tl.full((BLOCK_P,), 0x7FFFFFFF, tl.int32)
    for step in range(steps):
        at = begin + step * BLOCK_P + lanes
        inside = at < pixels
        label, keep, bad = _known_labels(target, at, inside, classes, ignore_index, HAS_IGNORE)
        predicted = tl.load(prediction + at, mask=inside, other=0).to(tl.int64)
        is_class = (predicted >= 0) & (predicted < classes)
        wrong = keep & (is_class == 0)
        place = step * BLOCK_P + lanes
        bad_count += bad.to(tl.int32)
        bad_first = tl.minimum(bad_first, tl.where(bad, place, 0x7FFFFFFF))
        wrong_count += wrong.to(tl.int32)
        wrong_first = tl.minimum(wrong_first, tl.where(wrong, place, 0x7FFFFFFF))
        keep &= is_class
        counted = _count(counts, counted, tl.where(keep, label * classes + predicted, 0), keep, BINS)
    store_bad_labels(partial_bad, program, bad_count, bad_first, begin, 0)
    store_bad_labels(partial_bad + 2 * tl.num_programs(0), program, wrong_count, wrong_first, begin, 0)
    _add_counts(counts, counted, BINS)


@triton.jit(do_not_specialize=["programs"])
def confusion_matrix_bad_data_kernel(
    partial_bad,  # int64 [kinds, programs, 2]: count, flat position of the first
    target,
    prediction,
    records,  # int64 [kinds, 3]
    programs,
    BLOCK: tl.constexpr,
):
    """A program for each kind: labels, and predictions if they are labels too."""
    kind = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    count = tl.zeros((BLOCK,), tl.int64)
    first = tl.full((BLOCK,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    own = partial_bad + kind.to(tl.int64) * 2 * programs
    for start in range(0, programs, BLOCK):
        at = 2 * (start + lanes.to(tl.int64))
        bad = tl.load(own + at, mask=lanes < programs - start, other=0)
        count += bad
        first = tl.minimum(first, tl.load(own + at + 1, mask=bad > 0, other=0x7FFFFFFFFFFFFFFF))
    found = tl.sum(count, axis=0)
    position = tl.where(found > 0, tl.min(first, axis=0), 0)
    value = tl.load(target + position, mask=(found > 0) & (kind == 0), other=0).to(tl.int64)
    if prediction is not None:
        value += tl.load(prediction + position, mask=(found > 0) & (kind == 1), other=0).to(tl.int64)
    tl.store(records + 3 * kind, found)
    tl.store(records + 3 * kind + 1, position)
    tl.store(records + 3 * kind + 2, value)


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, has_ignore_index: bool, ignore_index: int, on_bad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``segops_triton::confusion_matrix``."""
    of_logits = prediction.is_floating_point()
    _check(prediction, target, num_classes)
    counts = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=target.device)
    bins = triton.next_power_of_2(num_classes * num_classes)
    options = {"HAS_IGNORE": has_ignore_index, "BINS": max(bins, 2) if bins <= _MOST_BINS else 0}
    labels = target.contiguous()
    if of_logits:
        rows = as_rows(prediction)
        n, classes, pixels = rows.shape
        block_c = min(32, triton.next_power_of_2(classes))
        block_p = max(32, min(512, (4096 if rows.stride(2) == 1 else 2048) // block_c))
        chunks, steps = _cut(pixels, block_p)
        partial = torch.empty((1, n * chunks, 2), dtype=torch.int64, device=target.device)
        numbers = (classes, pixels, rows.stride(), chunks, steps, ignore_index)
        options |= {"T": computing_dtype(prediction), "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": 8}
        tensors = (rows, labels, counts, partial)
        launch(confusion_matrix_logits_kernel, n * chunks, target, *tensors, *numbers, **options)
        predicted = None
    else:
        predicted, pixels, block_p = prediction.contiguous(), target.numel(), 1024
        chunks, steps = _cut(pixels, block_p)
        partial = torch.empty((2, chunks, 2), dtype=torch.int64, device=target.device)
        arguments = (predicted, labels, counts, partial, num_classes, pixels, steps, ignore_index)
        launch(confusion_matrix_classes_kernel, chunks, target, *arguments, BLOCK_P=block_p, num_warps=4, **options)
    records = torch.empty((partial.shape[0], 3), dtype=torch.int64, device=target.device)
    of_kinds = (partial, labels, predicted, records, partial.shape[1])
    launch(confusion_matrix_bad_data_kernel, partial.shape[0], target, *of_kinds, BLOCK=512, num_warps=4)
    bad_labels, bad_predictions = records[0].clone(), records[1:].flatten().clone()
    describe = functools.partial(errors.describe_bad_labels, OP, shape=list(target.shape), classes=num_classes)
    ignored = ignore_index if has_ignore_index else None
    report(bad_labels, on_bad, functools.partial(describe, ignore_index=ignored, name="target"))
    if not of_logits:
        report(bad_predictions, on_bad, functools.partial(describe, ignore_index=None, name="prediction"))
    return counts, bad_labels, bad_predictions


def _cut(pixels: int, block: int) -> tuple[int, int]:
    """How many programs an image has, and how many blocks each of them takes."""
    blocks = -(-pixels // block)
    chunks = -(-blocks // _MOST_STEPS)
    return chunks, -(-blocks // chunks) if chunks else 0


def _check(prediction: Tensor, target: Tensor, num_classes: int) -> None:
    """What memory safety needs."""
    shape = tuple(prediction.shape)
    if prediction.is_floating_point():
        if prediction.ndim < 3 or shape[1] != num_classes:
            raise RuntimeError(f"segops.{OP}: logits must be [N, {num_classes}, *spatial], got {list(shape)}")
        shape = (shape[0], *shape[2:])
    if tuple(target.shape) != shape or target.is_floating_point() or num_classes < 1:
        raise RuntimeError(f"segops.{OP}: target must be labels {list(shape)} of at least one class")
