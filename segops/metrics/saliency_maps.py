"""The measures of one saliency map, for a batch of maps of one size. No branch depends on data.

On the CPU a kernel reads the pixels (:mod:`segops.ops.saliency_maps`). The same in tensors serves the other devices,
and is what that kernel is tested against.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from segops import backends
from segops.metrics.distance import nearest_foreground
from segops.ops.confusion_matrix import confusion_matrix
from segops.ops.saliency_maps import LEVELS, saliency_maps

EPS = torch.finfo(torch.float64).eps
#: Beta squared of the F-measure; Achanta et al., "Frequency-tuned salient region detection" (CVPR 2009).
BETA_SQUARE = 0.3
#: Rows of the histogram for one map: foreground or not, above the adaptive threshold or not, four blocks.
_ROWS = 16
#: At a time: the rows are labels of one byte.
_MAX_MAPS = LEVELS // _ROWS
_KERNEL = 7
_SIGMA = 5.0


class Measures(NamedTuple):
    """Of N maps: float64 [N], or [N, 256] for the thresholds 255 .. 0."""

    mae: Tensor
    s_measure: Tensor
    weighted_f: Tensor
    adaptive_f: Tensor
    adaptive_e: Tensor
    precision: Tensor
    recall: Tensor
    f_curve: Tensor
    e_curve: Tensor


class Observed(NamedTuple):
    """What the pixels of N maps tell, float64; all measures follow from it.

    In `total` and `square`, the first value of the block is taken away from each. Of a block of one value they are
    zero, not nearly zero: the S-measure has a jump there.

    Attributes:
        bad: [N], 1 where a prediction is outside [0, 1]; all else then means nothing.
        pixels: [N].
        mean: [N], of the values.
        hits, misses: [N, 256], foreground and background pixels of each level or above, levels descending.
        above: [N, 2], background and foreground pixels above the adaptive threshold.
        counts, total, square: [N, 4, 2], by block, background or foreground.
        first: [N, 4], the first value of each block.
        lost, weighted: [N], sums for the weighted F-measure.
    """

    bad: Tensor
    pixels: Tensor
    mean: Tensor
    hits: Tensor
    misses: Tensor
    above: Tensor
    counts: Tensor
    total: Tensor
    square: Tensor
    first: Tensor
    lost: Tensor
    weighted: Tensor


def observe(maps: Tensor, masks: Tensor, normalize: bool) -> Observed:
    """Read maps.

    Args:
        maps: [N, H, W], uint8, of which 255 is 1, or floating point in [0, 1].
        masks: bool [N, H, W], the foreground.
        normalize: stretch each map to [0, 1], unless it has one value.
    """
    if maps.device.type == "cpu" and backends.resolve(None, maps.device) == "native":
        return Observed(**saliency_maps(maps, masks, _nearness(maps.device), normalize))
    return observe_tensors(maps, masks, normalize)


def observe_tensors(maps: Tensor, masks: Tensor, normalize: bool) -> Observed:
    """:func:`observe` on any device."""
    parts = zip(maps.split(_MAX_MAPS), masks.split(_MAX_MAPS), strict=True)
    seen = [_observe(*_values(some, normalize), foreground) for some, foreground in parts]
    return Observed(*(torch.cat(fields) for fields in zip(*seen, strict=True)))


def _values(maps: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The values, float64; in 256 steps, uint8; and for each map whether it has values outside [0, 1], float64."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    if maps.dtype == torch.uint8:
        # Divided before the minimum is taken away, as PySODMetrics does: a level may depend on the rounding.
        values, low, high = maps.double().div_(255), low.double() / 255, high.double() / 255
        bad = torch.zeros_like(low)
    else:
        values, low, high = maps.double(), low.double(), high.double()
        bad = (~((low >= 0) & (high <= 1))).double()
    if normalize:
        constant = low == high
        values = (values - torch.where(constant, 0, low)).div_(torch.where(constant, 1, high - low))
    elif maps.dtype == torch.float32:
        # In the precision of the map itself, as PySODMetrics does.
        return values, (maps * 255).to(torch.uint8), bad.flatten()
    return values, (values * 255).to(torch.uint8), bad.flatten()


def _observe(values: Tensor, levels: Tensor, bad: Tensor, masks: Tensor) -> Observed:
    """What at most _MAX_MAPS maps tell, of what :func:`_values` gives."""
    n, height, width = values.shape
    truth = masks.double()
    mean = values.flatten(1).mean(1)
    above = values >= (2 * mean).clamp(max=1)[:, None, None]
    centre = _centre(truth)
    in_lower = torch.arange(height, device=values.device) >= centre[:, :1]
    in_right = torch.arange(width, device=values.device) >= centre[:, 1:]

    row = masks.to(torch.uint8) + above.to(torch.uint8) * 2
    row += in_lower.to(torch.uint8)[:, :, None] * 8
    row += in_right.to(torch.uint8)[:, None, :] * 4
    row += torch.arange(0, _ROWS * n, _ROWS, dtype=torch.uint8, device=values.device)[:, None, None]
    counts = confusion_matrix(levels, row, LEVELS)[: _ROWS * n]
    counts = counts.view(n, 4, 2, 2, LEVELS).double()  # [N, block, above, foreground, level]
    per_level = counts.sum((1, 2)).flip(-1).cumsum(-1)

    first = _first_values(values, centre)
    total, square = _moments(values, truth, in_lower, in_right, first)
    lost, weighted = _weighted_errors(values, masks, truth)
    return Observed(
        bad=bad,
        pixels=torch.full_like(mean, height * width),
        mean=mean,
        hits=per_level[:, 1],
        misses=per_level[:, 0],
        above=counts[:, :, 1].sum((1, 3)),
        counts=counts.sum((2, 4)),
        total=total,
        square=square,
        first=first.flatten(1),
        lost=lost,
        weighted=weighted,
    )


def measures(seen: Observed) -> Measures:
    """The measures of each map."""
    foreground = seen.hits[:, -1:]
    # Of the adaptive threshold, then of all others.
    hits = torch.cat([seen.above[:, 1:], seen.hits], 1)
    predicted = torch.cat([seen.above.sum(1, keepdim=True), seen.hits + seen.misses], 1)
    precision = hits / predicted.clamp(min=1)
    recall = hits / foreground.clamp(min=1)
    f, e = f_measure(precision, recall), _e_measure(hits, predicted, foreground, seen.pixels[:, None])
    off_mask, on_mask = (seen.total + seen.counts * seen.first[..., None]).sum(1).unbind(1)  # sums of the values
    errors = foreground[:, 0] - on_mask
    return Measures(
        mae=(off_mask + errors) / seen.pixels,
        s_measure=_s_measure(seen),
        weighted_f=_weighted_f(seen.lost, 2 * off_mask - (seen.weighted - errors), foreground[:, 0]),
        adaptive_f=f[:, 0],
        adaptive_e=e[:, 0],
        precision=precision[:, 1:],
        recall=recall[:, 1:],
        f_curve=f[:, 1:],
        e_curve=e[:, 1:],
    )


def f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    """(1 + b2) P R / (b2 P + R), 0 where P R is 0."""
    product = precision * recall
    return (1 + BETA_SQUARE) * product / torch.where(product > 0, BETA_SQUARE * precision + recall, 1)


def _e_measure(hits: Tensor, predicted: Tensor, foreground: Tensor, pixels: Tensor) -> Tensor:
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


def _first_values(values: Tensor, centre: Tensor) -> Tensor:
    """[N, lower, right]; any value for an empty block, which has none."""
    n, height, width = values.shape
    begins = torch.stack([torch.zeros_like(centre), centre], 2).long()  # [N, row or column, where]
    rows, columns = begins[:, 0].clamp(max=height - 1), begins[:, 1].clamp(max=width - 1)
    maps = torch.arange(n, device=values.device)[:, None, None]
    return values[maps, rows[:, :, None], columns[:, None, :]]


def _moments(values: Tensor, truth: Tensor, in_lower: Tensor, in_right: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """`total` and `square` of :class:`Observed`."""
    rows = torch.stack([~in_lower, in_lower], 1).double()  # [N, lower, H]
    columns = torch.stack([~in_right, in_right], 2).double()  # [N, W, right]
    left, right = torch.where(in_lower[:, None], first[:, 1, :, None], first[:, 0, :, None]).unbind(1)  # [N, H] each
    shifted = values - torch.where(in_right[:, None], right[:, :, None], left[:, :, None])

    def by_cell(x: Tensor, of_foreground: Tensor) -> Tensor:
        both, foreground = ((rows @ (t @ columns)).flatten(1) for t in (x, of_foreground))
        return torch.stack([both - foreground, foreground], 2)

    on_mask = shifted * truth
    return by_cell(shifted, on_mask), by_cell(shifted * shifted, on_mask * on_mask)


def _s_measure(seen: Observed) -> Tensor:
    """Fan et al., "Structure-measure: a new way to evaluate foreground maps" (ICCV 2017), alpha 1/2."""
    foreground = seen.counts[:, :, 1].sum(1)
    score = ((_by_object(seen) + _by_region(seen)) / 2).clamp(min=0)
    score = torch.where(foreground == seen.pixels, seen.mean, score)
    return torch.where(foreground == 0, 1 - seen.mean, score)


def _by_object(seen: Observed) -> Tensor:
    count, first = seen.counts.sum(1), seen.first[..., None]
    mean = (seen.total + seen.counts * first).sum(1) / count.clamp(min=1)
    shift = first - mean[:, None]
    square = (seen.square + 2 * shift * seen.total + seen.counts * shift.square()).sum(1)
    deviation = (square.clamp(min=0) / (count - 1).clamp(min=1)).sqrt()
    mean = torch.stack([1 - mean[:, 0], mean[:, 1]], 1)
    score = 2 * mean / (mean.square() + 1 + deviation + EPS)
    return (score * count).sum(1) / seen.pixels


def _by_region(seen: Observed) -> Tensor:
    """SSIM of the four blocks that meet at the centre of the foreground, by their share of the area; 0 if empty."""
    background, foreground = seen.counts.unbind(2)
    count = background + foreground
    some, total = count.clamp(min=1), seen.total.sum(2)
    x, y = seen.first + total / some, foreground / some
    free = count - 1 + EPS
    variance = (seen.square.sum(2) - total.square() / some).clamp(min=0) / free
    variance_of_mask = background * foreground / some / free
    both = (background > 0) & (foreground > 0)
    covariance = torch.where(both, seen.total[..., 1] - total * y, 0) / free
    alpha = 4 * x * y * covariance
    beta = (x.square() + y.square()) * (variance + variance_of_mask)
    score = torch.where(alpha != 0, alpha / (beta + EPS), (beta == 0).double())
    return (torch.where(count > 0, score, 0) * count).sum(1) / seen.pixels


def _weighted_errors(values: Tensor, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the smoothed errors on the foreground, and of all errors times 2^(-distance / 5); [N] each."""
    error = (values - truth).abs_()
    nearest = nearest_foreground(masks)
    # Smoothed errors count on the foreground alone, so that the nearest pixel matters only half a kernel around it.
    seen = error.flatten().index_select(0, nearest.position.flatten()).view(error.shape)
    nearness = _nearness(error.device).index_select(0, nearest.square.flatten()).view(error.shape)
    return _dot(torch.minimum(_smooth(seen), error), truth), _dot(error, nearness)


def _weighted_f(lost: Tensor, false: Tensor, foreground: Tensor) -> Tensor:
    """Margolin, Zelnik-Manor, Tal, "How to evaluate foreground maps?" (CVPR 2014), beta 1.

    Args:
        lost, false: weighted errors on and off the foreground.
    """
    hits = foreground - lost
    recall = 1 - lost / foreground.clamp(min=1)
    precision = hits / (hits + false + EPS)
    return torch.where(foreground == 0, 0, 2 * recall * precision / (recall + precision + EPS))


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
