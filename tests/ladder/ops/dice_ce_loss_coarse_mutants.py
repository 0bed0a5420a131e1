"""Bugs to be planted in the CUDA kernels of dice_ce_loss for coarse logits, and cases that catch them."""

from __future__ import annotations

from tests.ladder.operator import Mutant, case

WINDOW, GATHER = "coarse_window.cuh", "coarse_gather.cuh"
FORWARD, BACKWARD = "dice_ce_loss_coarse.cu", "dice_ce_loss_coarse_backward.cu"
UNREAD, REWRITTEN = "missing barrier before reading a reduction buffer", "missing barrier before rewriting it"
PAST, WRONG = "store one past the row", "wrong element"

MUTANTS = (
    Mutant(
        "coarse: window read at once",
        UNREAD,
        FORWARD,
        "BadData bad{0, 0, 0};\n  SYNC_THREADS();\n",
        "BadData bad{0, 0, 0};\n",
        (3, 4),
    ),
    Mutant(
        "coarse: sums of warps read at once",
        UNREAD,
        FORWARD,
        "bad_of_warp[warp] = bad;\n  }\n  SYNC_THREADS();\n",
        "bad_of_warp[warp] = bad;\n  }\n",
        (3, 4),
    ),
    Mutant(
        "coarse: softmax read at once",
        UNREAD,
        BACKWARD,
        "SYNC_THREADS();\n\n      for (int c = 0;",
        "for (int c = 0;",
        (3, 4),
    ),
    Mutant(
        "coarse: tables and window read at once",
        UNREAD,
        BACKWARD,
        "SYNC_THREADS();  // tables and window are there, and the piece before is done",
        "",
        (3, 4),
    ),
    Mutant(
        "coarse: sums of columns read at once",
        UNREAD,
        BACKWARD,
        "SYNC_THREADS();\n        gather.sum_along",
        "gather.sum_along",
        (3, 4),
    ),
    Mutant(
        "coarse: sums of columns written early",
        REWRITTEN,
        BACKWARD,
        "SYNC_THREADS();  // the sums have been read",
        "",
        (4,),
    ),
    Mutant(
        "coarse: pixels beyond the border are left out",
        "border cells are not recomputed",
        GATHER,
        "first_output(horizontal, left - 1)",
        "first_output(horizontal, left)",
        (3,),
    ),
    Mutant(
        "coarse: rows beyond the border are left out",
        "border cells are not recomputed",
        GATHER,
        "first_output(vertical, top - 1)",
        "first_output(vertical, top)",
        (3,),
    ),
    Mutant(
        "coarse: weight of the other tap",
        "wrong weight of the second tap",
        GATHER,
        "next += weight * g;",
        "next += (A(1) - weight) * g;",
        (3,),
    ),
    Mutant(
        "coarse: last row takes a share",
        "wrong weight of the second tap",
        GATHER,
        "(low == block.last_row ? A(1) : A(1) - weight) * g",
        "(A(1) - weight) * g",
        (3,),
    ),
    Mutant(
        "coarse: last column takes a share",
        "wrong weight of the second tap",
        GATHER,
        "is_last = block.left + j == block.last_column",
        "is_last = block.left + j > block.last_column",
        (3,),
    ),
    Mutant(
        "coarse: window one row short",
        "window one row short",
        WINDOW,
        "static_cast<int>(last.high - first.low) + 1,",
        "static_cast<int>(last.high - first.low),",
        (3, 4),
    ),
    Mutant(
        "coarse: window's pitch too small",
        PAST,
        WINDOW,
        "/ of_word | 1) * of_word",
        "/ of_word | 1) * of_word - 2",
        (3, 4),
    ),
    Mutant(
        "coarse: row below the last",
        PAST,
        WINDOW,
        "low < last ? low + 1 : last",
        "low <= last ? low + 1 : last",
        (3, 4),
    ),
    Mutant(
        "coarse: ignored logits stay",
        WRONG,
        FORWARD,
        "pixel[v].label < 0 ? A(0) : interpolated",
        "interpolated",
        (3,),
    ),
    Mutant(
        "coarse: map beyond the tile",
        PAST,
        FORWARD,
        "if (p.loss.ce_map && first + v < top + rows && x < left + columns)",
        "if (p.loss.ce_map)",
        (3, 4, 5),
    ),
    Mutant(
        "coarse: confusion counted",
        "plain increment instead of atomicAdd",
        FORWARD,
        "device::atomic_add(reinterpret_cast<unsigned long long*>(p.loss.confusion) + label * in.classes + winner[v],"
        " 1ull)",
        "++p.loss.confusion[label * in.classes + winner[v]]",
        (4,),
    ),
    Mutant(
        "coarse: totals of the last piece only",
        WRONG,
        GATHER,
        "totals[first * rows * columns + i] += total",
        "totals[first * rows * columns + i] = total",
        (3,),
    ),
    Mutant(
        "coarse: more shared memory than allowed",
        "launch that the device refuses",
        BACKWARD,
        "OPT_IN_SHARED((dice_ce_loss_coarse_backward_kernel<T, kStaged>), plan.bytes)",
        "cudaSuccess",
        (3, 4),
    ),
)

#: Small; several blocks with borders of their own, several groups of classes, a cell of several pieces.
CASES = (
    case(c=9, h=17, w=40, H=35, W=81, weight=1, ignore=0.2, map=1, confusion=1, squared=1, bad=29),
    case(c=19, h=9, w=33, H=18, W=66, dtype="bfloat16", layout="channels_last", smoothing=0.1, n=2),
    case(c=3, h=3, w=5, H=11, W=37, pad=1, map=1, poison=1, confusion=1),
    case(c=2, h=1, w=1, H=71, W=67, align=1),
    case(c=60, h=16, w=32, H=33, W=65),
)
