"""dice_ce_loss of coarse logits on the ladder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from tests.ladder.operator import OF_DOUBLE, OF_FLOAT, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops import dice_ce_loss_coarse_mutants as mutants

DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("planar", "channels_last")

#: Coarse and fine sizes: one cell, equal sizes, primes, and a row or a column alone; none of a whole number of tiles.
SIZES = (
    {"h": 5, "w": 7, "H": 11, "W": 23},
    {"h": 1, "w": 1, "H": 7, "W": 5},
    {"h": 3, "w": 9, "H": 3, "W": 9},
    {"h": 1, "w": 40, "H": 3, "W": 83},
    {"h": 13, "w": 2, "H": 41, "W": 37},
    {"h": 1, "w": 1, "H": 1, "W": 1},
    {"h": 9, "w": 33, "H": 18, "W": 66},
)
CLASSES = (3, 1, 8, 19, 9)
OPTIONS = (
    {},
    {"weight": 1, "ignore": 0.2, "n": 2},
    {"squared": 1, "pixel_weight": 1, "confusion": 1},
    {"smoothing": 0.1, "weight": 1, "map": 1, "bad": 29},
    {"squared": 1, "smoothing": 0.2, "ignore": 0.9, "map": 1, "confusion": 1},
    {"weight": 1, "pixel_weight": 1, "smoothing": 0.1, "confusion": 1, "bad": 41, "ignore": 0.1},
    {"overlap": 0, "map": 1, "weight": 1},
    {"poison": 1, "ignore": 0.3, "n": 2},
)
LABELS = ("int64", "uint8", "int32", "int16")
PLACES = ({}, {"offset": 1}, {"pad": 1}, {"gap": 2})


def every_option(each: Sequence[dict[str, object]], channels: Sequence[int], label: Callable[[int], str]) -> list[str]:
    """Each dtype and layout with each set of options; all else taken in turn, in cycles of different lengths."""
    lines = []
    for i, (options, dtype, layout) in enumerate(itertools.product(each, DTYPES, LAYOUTS)):
        place = PLACES[(i // 3) % len(PLACES)] if layout == "planar" else PLACES[i // 3 % 3]
        shape = {"dtype": dtype, "layout": layout, "c": channels[i % len(channels)], **SIZES[i % 7]}
        lines.append(case(**shape, label=label(i), align=i // 5 % 2, **place, **options, seed=i + 1))
    return lines


#: What does not fit in shared memory: a window (too many classes), a slab of classes, the pixels of a cell.
BEYOND = [
    case(c=700, h=3, w=33, H=3, W=34, dtype=dtype, layout=layout, weight=1, ignore=0.2)
    for dtype, layout in itertools.product(("float32", "bfloat16"), LAYOUTS)
] + [
    case(c=1031, h=2, w=3, H=4, W=5, squared=1),
    case(c=2, h=1, w=1, H=71, W=67),
    case(c=2, h=2, w=2, H=90, W=101, align=1, squared=1, dtype="float64"),
]

ELEMENT = {"float32": 4, "bfloat16": 2}
LABEL = 8


def traffic(
    dtype: str, classes: int, layout: str, size: tuple[int, int], ratio: int, read: tuple[float, float]
) -> Traffic:
    """Coarse logits and labels are to be read, and the coarse gradient to be written, once.

    Blocks read the cells beyond their border too, and backward the labels there: the more, the smaller blocks are, and
    those of small images have few rows. `read`: how often, by forward and backward.
    """
    height, width = size
    cells, pixels = height * width, height * width * ratio * ratio
    logits, labels = classes * cells * ELEMENT[dtype], LABEL * pixels
    sums = Bytes(0, beside=0.1 * (logits + labels))
    return Traffic(
        f"{dtype}, {classes} classes, {layout}, x{ratio}",
        case(dtype=dtype, c=classes, h=height, w=width, H=height * ratio, W=width * ratio, layout=layout),
        {
            "dice_ce_loss_coarse_forward": Moves(Bytes(logits + labels, read[0]), sums, 0.1),
            "dice_ce_loss_combine": Moves(sums, sums),
            # Sums along a row are strided by the ratio.
            "dice_ce_loss_coarse_backward": Moves(Bytes(logits + labels, read[1]), Bytes(logits), 0.35),
        },
    )


TRAFFIC = [
    *(traffic(dtype, 19, layout, (32, 64), 4, (1.75, 2.25)) for dtype, layout in itertools.product(ELEMENT, LAYOUTS)),
    traffic("float32", 3, "planar", (64, 128), 2, (1.4, 1.6)),
    # What a block holds is 4 by 16 cells.
    traffic("float32", 150, "planar", (32, 32), 2, (2.5, 3.5)),
]

_HALF_OR_SINGLE = "(?:float|bfloat16|float16)"

#: A multiprocessor has 8 warps of forward, whose lanes have 4 pixels in flight, and 16 of backward.
LIMITS = (
    Limit(rf"dice_ce_loss_coarse_forward<{_HALF_OR_SINGLE}, .*>", 232, calls=OF_FLOAT),
    Limit(rf"dice_ce_loss_coarse_backward<{_HALF_OR_SINGLE}, .*>", 128, calls=OF_FLOAT),
    Limit(r"dice_ce_loss_coarse_(?:forward|backward)<double, .*>", 255, calls=OF_DOUBLE),
)

OPERATOR = Operator(
    name="dice_ce_loss_coarse",
    cpu=("dice_ce_loss.cpp",),
    cuda=("dice_ce_loss_coarse.cu", "dice_ce_loss_coarse_backward.cu", "dice_ce_loss_combine.cu"),
    cases={
        "options": every_option(OPTIONS, CLASSES, lambda i: LABELS[i // 2 % 4]),
        "nothing": [case(n=0, map=1, confusion=1)],
    },
    large={"beyond shared memory": BEYOND},
    traffic=TRAFFIC,
    mutants=mutants.MUTANTS,
    mutant_cases=mutants.CASES,
    limits=LIMITS,
)
