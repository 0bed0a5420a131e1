"""What the tests of dice_ce_loss with coarse logits share."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

import segops
from segops.reference.dice_ce_loss import interpolated
from tests.ops.dice_ce_loss_eager import eager, fill
from tests.tolerances import Comparison, compare

#: (N, C, h, w), (H, W): one pixel, one row, prime sizes, scales below 2 and above 16, several strips of columns.
SIZES = {
    "one pixel to two": ((1, 3, 1, 1), (1, 2)),
    "one pixel to many": ((2, 3, 1, 1), (64, 64)),
    "huge ratio": ((1, 3, 2, 3), (97, 101)),
    "only columns": ((2, 5, 7, 11), (7, 23)),
    "only rows": ((2, 5, 7, 11), (29, 11)),
    "twofold": ((2, 4, 9, 17), (18, 34)),
    "threefold": ((1, 2, 6, 35), (18, 105)),
    "fourfold, 19 classes": ((1, 19, 8, 16), (32, 64)),
    "prime": ((2, 4, 13, 17), (31, 193)),
    "barely finer": ((1, 2, 20, 150), (21, 151)),
    "many classes": ((1, 150, 3, 4), (12, 17)),
    "a column": ((2, 3, 11, 1), (37, 1)),
}

#: What Triton's interpreter has in their place where it would take seconds: its programs have 16 pixels of 150 classes,
#: 32 of 19 and 256 of 4, and here, too, there are several, the last one not full.
SMALLER = {
    "one pixel to many": ((2, 3, 1, 1), (17, 20)),
    "huge ratio": ((1, 3, 2, 3), (41, 43)),
    "fourfold, 19 classes": ((1, 19, 3, 5), (12, 20)),
    "prime": ((2, 4, 7, 11), (17, 31)),
    "barely finer": ((1, 2, 10, 60), (11, 61)),
    "many classes": ((1, 150, 2, 3), (5, 7)),
}


def coarse_eager(logits: Tensor, target: Tensor, align_corners: bool = False, **options: Any) -> Tensor:
    """The loss of the interpolated logits, in eager PyTorch and the dtype of the logits."""
    return eager(interpolated(logits, target.shape[1:], align_corners), target, **options)


def check(
    logits: Tensor, target: Tensor, backend: str, options: dict[str, Any] | None = None, **scales: Any
) -> Comparison:
    """Value and gradient against the eager formula. Options per pixel are given by "per pixel", as for other logits."""
    like_pixels = logits.new_empty((logits.shape[0], logits.shape[1], *target.shape[1:]))
    arguments = fill(options or {}, like_pixels)
    ours = functools.partial(segops.dice_ce_loss, target=target, backend=backend, **arguments)
    return compare(ours, functools.partial(coarse_eager, target=target, **arguments), logits, **scales)
