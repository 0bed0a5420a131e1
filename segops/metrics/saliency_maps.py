"""The measures of one saliency map, for a batch of maps of one size. No branch depends on data."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from segops.metrics.distance import nearest_foreground
from segops.ops.confusion_matrix import confusion_matrix

EPS = torch.finfo(torch.float64).eps
#: Beta squared of the F-measure; Achanta et al., "Frequency-tuned salient region detection" (CVPR 2009).
BETA_SQUARE = 0.3
LEVELS = 256
#: Rows of the histogram for one map: foreground or not, above the adaptive threshold or not, four blocks.
_ROWS = 16
#: Of one call: the rows are labels of one byte.
MAX_MAPS = LEVELS // _ROWS
_KERNEL = 7
_SIGMA = 5.0


class Measures(NamedTuple):
    """float64 [N], or [N, 256] for the thresholds 255 .. 0."""

    mae: Tensor
    s_measure: Tensor
    weighted_f: Tensor
    adaptive_f: Tensor
    adaptive_e: Tensor
    precision: Tensor
    recall: Tensor
    f_curve: Tensor
    e_curve: Tensor


class Cells(NamedTuple):
    """Sums of the values less those of each block's first pixel; float64 [N, 4, 2]: block, background or foreground.

    Of a block of one value they are zero, not nearly zero: the S-measure has a jump there.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    first: Tensor  # [N, 4]


def measure(values: Tensor, levels: Tensor, masks: Tensor) -> Measures:
    """All measures of at most MAX_MAPS maps.

    Args:
        values: float64 [N, H, W] in [0, 1].
        levels: uint8 [N, H, W], the values in 256 steps.
        masks: bool [N, H, W], the foreground.
    """
    n, height, width = values.shape
    pixels = height * width
    truth = masks.double()
    mean = values.flatten(1).sum(1) / pixels
    above = values >= (2 * mean).clamp(max=1)[:, None, None]
    centre = _centre(truth)
    in_lower = torch.arange(height, device=values.device) >= centre[:, :1]
    in_right = torch.arange(width, device=values.device) >= centre[:, 1:]

    row = masks.to(torch.uint8) + above.to(torch.uint8) * 2
    row += in_lower.to(torch.uint8)[:, :, None] * 4
    row += (in_right.to(torch.uint8) * 8)[:, None, :]
    row += torch.arange(0, _ROWS * n, _ROWS, dtype=torch.uint8, device=values.device)[:, None, None]
    counts = confusion_matrix(levels, row, LEVELS)[: _ROWS * n]
    # [N, right, lower, above, foreground, level]
    counts = counts.view(n, 2, 2, 2, 2, LEVELS).double()

    per_level = counts.sum((1, 2, 3)).flip(-1).cumsum(-1)
    background, hits = per_level[:, 0], per_level[:, 1]
    foreground = hits[:, -1:]
    precision = hits / (hits + background).clamp(min=1)
    recall = hits / foreground.clamp(min=1)
    beyond = counts[:, :, :, 1].sum((1, 2, 4))  # [N, foreground]
    adaptive_hits, adaptive = beyond[:, 1:], beyond.sum(1, keepdim=True)
    adaptive_f = f_measure(adaptive_hits / adaptive.clamp(min=1), adaptive_hits / foreground.clamp(min=1))

    cells = _cells(values, truth, counts.sum((3, 5)), in_lower, in_right, centre)
    of_mask = (cells.total + cells.count * cells.first[..., None]).sum(1)  # sums of the values, [N, foreground]
    errors = foreground[:, 0] - of_mask[:, 1]
    return Measures(
        mae=(of_mask[:, 0] + errors) / pixels,
        s_measure=_s_measure(cells, mean, pixels),
        weighted_f=_weighted_f(values, masks, truth, of_mask[:, 0], errors, foreground[:, 0]),
        adaptive_f=adaptive_f[:, 0],
        adaptive_e=_e_measure(adaptive_hits, adaptive, foreground, pixels)[:, 0],
        precision=precision,
        recall=recall,
        f_curve=f_measure(precision, recall),
        e_curve=_e_measure(hits, hits + background, foreground, pixels),
    )


def f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    """(1 + b2) P R / (b2 P + R), 0 where P R is 0."""
    product = precision * recall
    return (1 + BETA_SQUARE) * product / torch.where(product > 0, BETA_SQUARE * precision + recall, 1)


def _e_measure(hits: Tensor, predicted: Tensor, foreground: Tensor, pixels: int) -> Tensor:
    """Fan et al., "Enhanced-alignment measure for binary foreground map evaluation" (IJCAI 2018), from counts.

    A pixel has one of four pairs of (prediction, truth), and with it one of four values. The sum is divided by the
    number of pixels less one, as the authors' code does: a perfect map has a little more than 1.
    """
    mean, share = predicted / pixels, foreground / pixels
    total = torch.zeros_like(hits)
    for count, u, v in (
        (hits, 1 - mean, 1 - share),
        (predicted - hits, 1 - mean, -share),
        (foreground - hits, -mean, 1 - share),
        (pixels - predicted - foreground + hits, -mean, -share),
    ):
        aligned = 2 * (u * v) / (u * u + v * v + EPS)
        total += count * (aligned + 1).square() / 4
    total = torch.where(foreground == 0, pixels - predicted, torch.where(foreground == pixels, predicted, total))
    return total / (pixels - 1 + EPS)


def _centre(truth: Tensor) -> Tensor:
    """The row and the column [N, 2] at which the lower and the right blocks begin."""
    means = []
    for count in (truth.sum(2), truth.sum(1)):
        weighted = count * torch.arange(count.shape[1], device=truth.device)
        means.append(weighted.sum(1) / count.sum(1).clamp(min=1))
    return torch.stack(means, 1).round() + 1


def _cells(
    values: Tensor, truth: Tensor, count: Tensor, in_lower: Tensor, in_right: Tensor, centre: Tensor
) -> Cells:
    n, height, width = values.shape
    rows = torch.stack([~in_lower, in_lower], 1).double()  # [N, 2, H]
    columns = torch.stack([~in_right, in_right], 2).double()  # [N, W, 2]
    # An empty block has no first pixel; any will do.
    first_row = torch.stack([torch.zeros_like(centre[:, 0]), centre[:, 0].clamp(max=height - 1)], 1).long()
    first_column = torch.stack([torch.zeros_like(centre[:, 1]), centre[:, 1].clamp(max=width - 1)], 1).long()
    map_ = torch.arange(n, device=values.device)[:, None, None]
    first = values[map_, first_row[:, :, None], first_column[:, None, :]]  # [N, lower, right]
    of_row = torch.where(in_lower[:, None], first[:, 1, :, None], first[:, 0, :, None])  # [N, right, H]
    shifted = values - torch.where(in_right[:, None, :], of_row[:, 1, :, None], of_row[:, 0, :, None])

    def by_block(x: Tensor) -> Tensor:
        return (rows @ (x @ columns)).flatten(1)

    def by_cell(x: Tensor, of_foreground: Tensor) -> Tensor:
        foreground = by_block(of_foreground)
        return torch.stack([by_block(x) - foreground, foreground], 2)

    on_mask = shifted * truth
    total = by_cell(shifted, on_mask)
    square = by_cell(shifted.square(), on_mask.square())
    return Cells(count.transpose(1, 2).flatten(1, 2), total, square, first.flatten(1))


def _s_measure(cells: Cells, mean: Tensor, pixels: int) -> Tensor:
    """Fan et al., "Structure-measure: a new way to evaluate foreground maps" (ICCV 2017), alpha 1/2."""
    foreground = cells.count[:, :, 1].sum(1)
    share = foreground / pixels
    score = (_by_object(cells, share) + _by_region(cells, pixels)) / 2
    return torch.where(foreground == 0, 1 - mean, torch.where(foreground == pixels, mean, score.clamp(min=0)))


def _by_object(cells: Cells, share: Tensor) -> Tensor:
    count = cells.count.sum(1)
    some = count.clamp(min=1)
    first = cells.first[..., None]
    mean = (cells.total + cells.count * first).sum(1) / some
    shift = first - mean[:, None]
    square = (cells.square + 2 * shift * cells.total + cells.count * shift.square()).sum(1)
    deviation = (square.clamp(min=0) / (count - 1).clamp(min=1)).sqrt()
    mean = torch.stack([1 - mean[:, 0], mean[:, 1]], 1)
    score = 2 * mean / (mean.square() + 1 + deviation + EPS)
    return score[:, 0] * (1 - share) + score[:, 1] * share


def _by_region(cells: Cells, pixels: int) -> Tensor:
    """SSIM of the four blocks that meet at the centre of the foreground, by their share of the area; 0 if empty."""
    background, foreground = cells.count.unbind(2)
    count = background + foreground
    some, total = count.clamp(min=1), cells.total.sum(2)
    x, y = cells.first + total / some, foreground / some
    free = count - 1 + EPS
    variance = (cells.square.sum(2) - total.square() / some).clamp(min=0) / free
    variance_of_mask = background * foreground / some / free
    both = (background > 0) & (foreground > 0)
    covariance = torch.where(both, cells.total[..., 1] - total * y, 0) / free
    alpha = 4 * x * y * covariance
    beta = (x.square() + y.square()) * (variance + variance_of_mask)
    score = torch.where(alpha != 0, alpha / (beta + EPS), (beta == 0).double())
    return (torch.where(count > 0, score, 0) * count).sum(1) / pixels


def _weighted_f(
    values: Tensor, masks: Tensor, truth: Tensor, background_errors: Tensor, errors: Tensor, foreground: Tensor
) -> Tensor:
    """Margolin, Zelnik-Manor, Tal, "How to evaluate foreground maps?" (CVPR 2014), beta 1.

    Args:
        background_errors, errors: sums of the errors off and on the foreground.
    """
    error = (values - truth).abs_()
    nearest = nearest_foreground(masks)
    # Smoothed errors count on the foreground alone, so that the nearest pixel matters only half a kernel around it.
    seen = error.flatten().index_select(0, nearest.index.flatten()).view(error.shape)
    smoothed = torch.minimum(_smooth(seen), error)
    lost = _dot(smoothed, truth)
    # 2 - 2^(-distance / 5), and 1 on the foreground, where the distance is 0.
    nearness = _nearness(error.device).index_select(0, nearest.square.flatten()).view(error.shape)
    false = 2 * background_errors - (_dot(error, nearness) - errors)
    hits = foreground - lost
    recall = 1 - lost / foreground.clamp(min=1)
    precision = hits / (hits + false + EPS)
    score = 2 * recall * precision / (recall + precision + EPS)
    return torch.where(foreground == 0, 0, score)


@cache
def _nearness(device: torch.device) -> Tensor:
    """2^(-distance / 5) by the square of the distance."""
    return torch.arange(1 << 16, dtype=torch.float64, device=device).sqrt_().mul_(math.log(0.5) / 5).exp_()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])[:, 0, 0]


def _smooth(x: Tensor) -> Tensor:
    """A Gaussian of 7 x 7 pixels with zeros around the maps [N, H, W]; a view of a larger tensor.

    The maps lie in one line with their borders, so that a shift in either direction is a contiguous part of it.
    """
    n, height, width = x.shape
    border = _KERNEL // 2
    padded = x.new_zeros(n, height + 2 * border, width + 2 * border)
    padded[:, border:-border, border:-border] = x
    weights = [math.exp(-0.5 * (i / _SIGMA) ** 2) for i in range(border + 1)]
    scale = weights[0] + 2 * sum(weights[1:])
    strides, line = padded.stride(), padded.flatten()
    for step in (strides[1], 1):
        length = line.numel() - 2 * border * step
        parts = [line[i * step : i * step + length] for i in range(_KERNEL)]
        line = parts[border] * (weights[0] / scale)
        for i in range(1, border + 1):
            line.add_(parts[border - i] + parts[border + i], alpha=weights[i] / scale)
    return line.as_strided(x.shape, strides)
