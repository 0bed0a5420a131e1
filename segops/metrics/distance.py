"""Exact Euclidean distance to the nearest foreground pixel, without waiting for a device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segops.ops.saliency_maps import REACH

#: Rows and columns within which a nearest pixel is looked for: that of what is at most 3 off in each direction, and so
#: has the distance sqrt(18) at most.
NEAR = 4

_BIAS = 1 << 15
_OFFSET_BITS = 4
#: The square of REACH, and with the largest step added to it still an int16.
_FAR = (1 << 15) - 1 - 2 * REACH


class Nearest(NamedTuple):
    """
    Attributes:
        square: int32 of the masks' shape, the squared distance.
        position: int32 of the masks' shape, where the nearest foreground pixel is in the flattened masks; right where a
            foreground pixel is at most 3 rows and 3 columns away, any valid index elsewhere.
    """

    square: Tensor
    position: Tensor


def nearest_foreground(masks: Tensor) -> Nearest:
    """Where the nearest True of each map is, and how far.

    First within the row, by running maxima of indices. Then the lower envelope of the parabolas
    ``square[k] + (row - k)^2``: since k^2 = 1 + 3 + 5 + ..., it is what repeated minima of three rows arrive at,
    the two outer ones raised by 1, 3, 5, ... (Huang, Mitchell, "A Euclidean distance transform using grayscale
    morphology decomposition", PAMI 1994): as many rounds as there can be, since a device is not
    waited for.

    Args:
        masks: bool [N, H, W]; of one map of any size, the fewer rows the faster.
    """
    n, height, width = masks.shape
    rows = masks.transpose(0, 1).contiguous()  # a shift by one row is one by N * W elements, of all maps at once
    column = torch.arange(width, dtype=torch.int32, device=masks.device)
    left = torch.where(rows, column, -REACH).cummax(-1).values
    right = torch.where(rows, column, width + REACH).flip(-1).cummin(-1).values.flip(-1)
    to_left, to_right = column - left, right - column
    in_row = torch.minimum(to_left, to_right).clamp_(max=REACH)

    shape = (height + 2 * NEAR, n * width)
    lines = torch.full(shape, _FAR, dtype=torch.int16, device=masks.device)
    lines[NEAR:-NEAR] = (in_row * in_row - _BIAS).clamp_(max=_FAR).view(height, -1)
    position = torch.arange(rows.numel(), dtype=torch.int32, device=masks.device).view(rows.shape)
    nearest_in_row = position - column + torch.where(to_left <= to_right, left, right).clamp_(0, width - 1)
    row = position + _row_of_nearest(lines, height).view(rows.shape) * (n * width)
    index = nearest_in_row.flatten().index_select(0, row.flatten()).view(rows.shape)

    _lower_envelope(lines[NEAR - 1 : height + NEAR + 1])
    square = lines[NEAR:-NEAR].to(torch.int32).add_(_BIAS).view(rows.shape)
    if n > 1:  # positions of [H, N, W] to positions of [N, H, W]
        line, place = index // width, index % width
        index = ((line % n) * height + line // n) * width + place
    return Nearest(square.transpose(0, 1), index.transpose(0, 1))


def _row_of_nearest(lines: Tensor, height: int) -> Tensor:
    """How many rows off the nearest pixel is, of those at most NEAR rows away; int32 [height, lines.shape[1]]."""
    # The offset in the low bits, so that the least number tells both. Squares that are too large stay too large.
    coded = ((lines.clamp(max=4 * NEAR * NEAR - _BIAS) + _BIAS) << _OFFSET_BITS) + NEAR
    best = coded[NEAR:-NEAR].clone()
    other = torch.empty_like(best)
    for offset in (sign * step for step in range(1, NEAR + 1) for sign in (-1, 1)):
        raised = (offset * offset << _OFFSET_BITS) + offset
        torch.minimum(best, torch.add(coded[NEAR + offset : NEAR + offset + height], raised, out=other), out=best)
    return (best & (1 << _OFFSET_BITS) - 1).to(torch.int32) - NEAR


def _lower_envelope(lines: Tensor) -> None:
    """In place, but for the first and the last row, which are _FAR."""
    above, inner, below = lines[:-2], lines[1:-1], lines[2:]
    raised = torch.empty_like(inner)
    for step in range(1, min(len(inner), REACH + 1)):
        torch.minimum(above, below, out=raised)
        raised += 2 * step - 1
        torch.minimum(inner, raised, out=inner)
