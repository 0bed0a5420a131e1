"""dice_ce_loss: the programs' sums added up in float64 in a fixed order, and the loss made of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_overlap(partial, overlap, entries, chunks, groups, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """The sums of this program's image and group of entries."""
    program = tl.program_id(0).to(tl.int64)
    n = program // groups
    entry = (program % groups) * BLOCK_E + tl.arange(0, BLOCK_E)
    row = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_E), tl.float64)
    for start in range(0, chunks, BLOCK_R):
        mask = (row < chunks - start)[:, None] & (entry < entries)[None, :]
        at = (n * chunks + start + row)[:, None] * entries + entry[None, :]
        total += tl.load(partial + at, mask=mask, other=0.0).to(tl.float64)
    tl.store(overlap + n * entries + entry, tl.sum(total, axis=0), mask=entry < entries)


@triton.jit
def store_totals(partial_ce, partial_bad, ce, bad_labels, programs, BLOCK: tl.constexpr):
    """The cross-entropy, and how many labels are bad; that and the position of the first are returned."""
    lanes = tl.arange(0, BLOCK)
    loss = tl.zeros((BLOCK,), tl.float64)
    share = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int64)
    first = tl.full((BLOCK,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    for start in range(0, programs, BLOCK):
        at = 2 * (start + lanes.to(tl.int64))
        inside = lanes < programs - start
        loss += tl.load(partial_ce + at, mask=inside, other=0.0).to(tl.float64)
        share += tl.load(partial_ce + at + 1, mask=inside, other=0.0).to(tl.float64)
        bad = tl.load(partial_bad + at, mask=inside, other=0)
        position = tl.load(partial_bad + at + 1, mask=bad > 0, other=0x7FFFFFFFFFFFFFFF)
        count += bad
        first = tl.minimum(first, position)
    tl.store(ce, tl.sum(loss, axis=0))
    tl.store(ce + 1, tl.sum(share, axis=0))
    found = tl.sum(count, axis=0)
    position = tl.where(found > 0, tl.min(first, axis=0), 0)
    tl.store(bad_labels, found)
    tl.store(bad_labels + 1, position)
    return found, position


@triton.jit(do_not_specialize=["chunks", "programs"])
def dice_ce_loss_sums_kernel(
    partial_overlap,  # T [programs, 3, C] or None
    partial_ce,  # T [programs, 2]
    partial_bad,  # int64 [programs, 2]: count, flat position of the first
    target,  # [N, S]
    overlap,  # float64 [N, 3, C] or None
    ce,  # float64 [2]
    bad_labels,  # int64 [3]
    entries,  # 3 C
    chunks,  # programs of one image
    programs,
    groups,  # of BLOCK_E entries
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each image and group of entries; the last one adds the cross-entropy and the bad labels."""
    if tl.program_id(0) + 1 < tl.num_programs(0):
        if partial_overlap is not None:
            store_overlap(partial_overlap, overlap, entries, chunks, groups, BLOCK_R, BLOCK_E)
    else:
        found, position = store_totals(partial_ce, partial_bad, ce, bad_labels, programs, BLOCK)
        tl.store(bad_labels + 2, tl.load(target + position, mask=found > 0, other=0).to(tl.int64))


@triton.jit
def _sum_of_images(overlap, at, images, stride, mask):
    total = tl.zeros(at.shape, tl.float64)
    for n in range(images):
        total += tl.load(overlap + at + n * stride, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=["rows", "images"])
def dice_ce_loss_value_kernel(
    overlap,  # float64 [N, 3, C] or None
    ce,  # float64 [2]
    dice_class_weight,  # float64 [C] or None
    loss,  # float64 []
    parts,  # float64 [2]: ce, dice
    scores,  # float64 [rows, C]
    grad_overlap,  # float64 [N, 3, C]
    grad_ce,  # float64 [2]
    classes,
    rows,  # images, or 1 if they are pooled
    images,  # of one row
    num_i: tl.float64,
    den_i: tl.float64,
    den_p: tl.float64,
    den_t: tl.float64,
    smooth: tl.float64,
    ce_weight: tl.float64,
    dice_weight: tl.float64,
    WITH_CE: tl.constexpr,
    WITH_DICE: tl.constexpr,
    INCLUDE_BACKGROUND: tl.constexpr,
    SKIP_ABSENT: tl.constexpr,
    CE_MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The score of a cell (a row and a class) is (i I + smooth) / (j I + p P + t T + smooth), 0/0 counts as 1.

    A term of weight zero is left out: its NaN reaches neither loss nor gradient.
    """
    dice = tl.full((1,), 0.0, tl.float64)
    if overlap is not None:
        cells = rows * classes
        lanes = tl.arange(0, BLOCK)
        stride = 3 * classes
        counted = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, cells, BLOCK):
            cell = start + lanes
            counts = cell < cells
            if not INCLUDE_BACKGROUND:
                counts &= cell % classes > 0
            if SKIP_ABSENT:
                truth = (cell // classes).to(tl.int64) * stride + 2 * classes + cell % classes
                counts &= _sum_of_images(overlap, truth, images, stride, cell < cells) > 0
            counted += counts.to(tl.int32)
        number = tl.sum(counted, axis=0).to(tl.float64)
        # With nothing to average, "skip" has no loss; otherwise the mean of nothing is NaN, as in torch.
        share = 1.0 / number
        if SKIP_ABSENT:
            share = tl.where(number > 0, share, 0.0)
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, cells, BLOCK):
            cell = start + lanes
            inside = cell < cells
            at = (cell // classes).to(tl.int64) * stride + cell % classes
            i = _sum_of_images(overlap, at, images, stride, inside)
            p = _sum_of_images(overlap, at + classes, images, stride, inside)
            t = _sum_of_images(overlap, at + 2 * classes, images, stride, inside)
            numerator = num_i * i + smooth
            denominator = den_i * i + den_p * p + den_t * t + smooth
            empty = denominator == 0
            score = tl.where(empty, 1.0, numerator / denominator)
            tl.store(scores + cell, score, mask=inside)
            counts = inside
            if not INCLUDE_BACKGROUND:
                counts &= cell % classes > 0
            if SKIP_ABSENT:
                counts &= t > 0
            weight = tl.zeros((BLOCK,), tl.float64) + share
            if dice_class_weight is not None:
                weight *= tl.load(dice_class_weight + cell % classes, mask=inside, other=0.0)
            total += tl.where(counts, weight * (1.0 - score), 0.0)
            of_i = tl.zeros((BLOCK,), tl.float64)
            of_p = tl.zeros((BLOCK,), tl.float64)
            if WITH_DICE:
                scale = dice_weight * weight / denominator  # not by its square, which may be too small for a float64
                differentiable = counts & (denominator != 0)
                of_i = tl.where(differentiable, scale * (score * den_i - num_i), 0.0)
                of_p = tl.where(differentiable, scale * score * den_p, 0.0)
            for n in range(images):
                to = grad_overlap + at + n * stride
                tl.store(to, of_i, mask=inside)
                tl.store(to + classes, of_p, mask=inside)
                tl.store(to + 2 * classes, tl.zeros((BLOCK,), tl.float64), mask=inside)
        # Infinity times zero: the mean of nothing.
        dice += tl.where(number > 0, tl.sum(total, axis=0), share * 0.0)
    lane = tl.arange(0, 1)
    cross_entropy = tl.load(ce + lane)
    of_ce = tl.full((1,), ce_weight, tl.float64)
    if CE_MEAN:
        cross_entropy /= tl.load(ce + 1 + lane)
        of_ce /= tl.load(ce + 1 + lane)
    result = tl.full((1,), 0.0, tl.float64)
    if WITH_CE:
        result += ce_weight * cross_entropy
    else:
        of_ce = tl.full((1,), 0.0, tl.float64)
    if WITH_DICE:
        result += dice_weight * dice
    tl.store(loss + lane, result)
    tl.store(parts + lane, cross_entropy)
    tl.store(parts + 1 + lane, dice)
    tl.store(grad_ce + lane, of_ce)
    tl.store(grad_ce + 1 + lane, tl.full((1,), 0.0, tl.float64))
