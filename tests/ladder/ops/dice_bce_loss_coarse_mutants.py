"""Bugs to be planted in the CUDA kernels of dice_bce_loss for coarse logits, and cases that catch them.

Those of window and gather are dice_ce_loss_coarse's.
"""

from __future__ import annotations

from tests.ladder.operator import Mutant, case

FORWARD, BACKWARD, FINE = "dice_bce_loss_coarse.cu", "dice_bce_loss_coarse_backward.cu", "dice_bce_loss_fine.cuh"
UNREAD = "missing barrier before reading a reduction buffer"
PAST, WRONG = "store one past the row", "wrong element"

MUTANTS = (
    Mutant(
        "bce, coarse: window read at once",
        UNREAD,
        FORWARD,
        "BadOfThread bad;\n  SYNC_THREADS();\n",
        "BadOfThread bad;\n",
        (3, 4),
    ),
    Mutant(
        "bce, coarse: sums of columns read at once",
        UNREAD,
        BACKWARD,
        "SYNC_THREADS();\n        gather.sum_along",
        "gather.sum_along",
        (3, 4),
    ),
    Mutant(
        "bce, coarse: sums of columns overwritten before they were read",
        "missing barrier before rewriting it",
        BACKWARD,
        "        SYNC_THREADS();  // the sums have been read\n",
        "",
        (3, 4),
    ),
    Mutant(
        "bce, coarse: lanes before the piece",
        PAST,
        BACKWARD,
        "if (x < 0 || x >= gather.span) continue;",
        "if (x >= gather.span) continue;",
        (3, 4),
    ),
    Mutant(
        "bce, coarse: taps read at once",
        UNREAD,
        BACKWARD,
        "      SYNC_THREADS();  // and window, totals and constants are there\n",
        "",
        (3, 4),
    ),
    Mutant(
        "bce, coarse: constants of the first channel",
        WRONG,
        BACKWARD,
        "slopes{constants[3 * c], constants[3 * c + 1],",
        "slopes{constants[0], constants[1],",
        (3,),
    ),
    Mutant(
        "bce, coarse: rows of the first warp",
        WRONG,
        FORWARD,
        "static_cast<int>(own.low), warp * kBand + v",
        "static_cast<int>(own.low), v",
        (3,),
    ),
    Mutant(
        "bce, coarse: pixels below the tile",
        PAST,
        FORWARD,
        "return in_row && warp * kBand + v < rows;",
        "return in_row;",
        (3, 4, 5),
    ),
    Mutant(
        "bce, coarse: weights of the first channel",
        WRONG,
        FINE,
        "in.pixel_weight.stride_n + channel * in.pixel_weight.stride_c",
        "in.pixel_weight.stride_n",
        (3,),
    ),
)

#: Small; several tiles with tails, slabs of channels, images.
CASES = (
    case(c=9, h=17, w=40, H=35, W=81, pos_weight=1, ignore=0.2, map=1, squared=1, bad=29, weights="each"),
    case(c=3, h=5, w=33, H=18, W=66, dtype="bfloat16", layout="channels_last", label="float32", n=2, gamma=2),
    case(c=2, h=3, w=70, H=5, W=280, layout="channels_last", bad=29),
)
