"""dice_bce_loss of coarse logits on the ladder."""

from __future__ import annotations

import itertools

from tests.ladder.operator import OF_DOUBLE, OF_FLOAT, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops import dice_bce_loss_coarse_mutants as mutants
from tests.ladder.ops.dice_ce_loss_coarse import LAYOUTS, every_option

CHANNELS = (3, 1, 8, 2, 9)
OPTIONS = (
    {},
    {"ignore": 0.2, "pos_weight": 1, "weights": "pixel", "n": 2},
    {"squared": 1, "weights": "each", "map": 1},
    {"gamma": 2, "bad": 29, "map": 1, "pos_weight": 1},
    {"gamma": 0.4, "ignore": 0.5, "weights": "pixel", "target_gap": 2},
    {"overlap": 0, "gamma": 1.5, "squared": 1, "bad": 17, "ignore": 0.1, "weights": "each"},
    {"bce": 0, "squared": 1, "n": 2, "target_gap": 1, "weights": "pixel"},
    {"poison": 1, "ignore": 0.3, "n": 2},
)
LABELS = ("uint8", "float32", "bfloat16", "float64", "float16")


#: Several tiles of several images; what is more than one piece: the pixels of a cell.
LARGE = [
    *(
        case(c=11, h=17, w=70, H=37, W=141, n=2, dtype=dtype, layout=layout, ignore=0.2, bad=1001, map=1, label=label)
        for (dtype, label), layout in itertools.product((("float32", "uint8"), ("bfloat16", "float32")), LAYOUTS)
    ),
    case(c=2, h=1, w=1, H=271, W=67),
    case(c=1, h=2, w=2, H=30, W=601, align=1, squared=1, dtype="float64"),
]

ELEMENT = {"float32": 4, "bfloat16": 2}


def traffic(
    dtype: str,
    channels: int,
    layout: str,
    ratio: int,
    times: tuple[float, float],
    coarse: tuple[int, int] = (32, 64),
    odd: int = 0,
) -> Traffic:
    """Coarse logits and labels are to be read, and the coarse gradient to be written, once; times: forward, backward.

    Blocks read the cells beyond their border too, and backward the labels there: of a row, whole sectors.
    odd: columns of labels that are missing.
    """
    height, width = coarse
    fine = (height * ratio, width * ratio - odd)
    logits, labels = channels * height * width * ELEMENT[dtype], channels * fine[0] * fine[1]
    sums = Bytes(0, beside=0.12 * (logits + labels))
    return Traffic(
        f"{dtype}, {channels} channels, {height} x {width} to {fine[0]} x {fine[1]}, {layout}",
        case(dtype=dtype, c=channels, h=height, w=width, H=fine[0], W=fine[1], layout=layout),
        {
            "dice_bce_loss_coarse_forward": Moves(Bytes(logits + labels, times[0]), sums, 0.1),
            "dice_ce_loss_combine": Moves(sums, sums),
            # Sums along a row are strided by the ratio.
            "dice_bce_loss_coarse_backward": Moves(Bytes(logits + labels, times[1]), Bytes(logits, 1.1), 0.55),
        },
    )


TRAFFIC = [
    # Blocks of an image this small have 4 rows of cells: a quarter of their labels is read twice.
    *(traffic(dtype, 8, layout, 4, (1.3, 1.75)) for dtype, layout in itertools.product(ELEMENT, LAYOUTS)),
    traffic("float32", 1, "planar", 2, (1.3, 1.75)),
    traffic("bfloat16", 19, "planar", 4, (1.3, 1.5), (64, 128)),
    # Rows of labels begin anywhere: those of a warp lie in two sectors.
    traffic("bfloat16", 8, "planar", 4, (2.0, 2.5), odd=3),
]

#: Two blocks of 256 threads on a multiprocessor; of double, one.
LIMITS = (
    Limit(r"dice_bce_loss_coarse_(?:forward|backward)<(?:float|bfloat16|float16)>", 128, calls=OF_FLOAT),
    Limit(r"dice_bce_loss_coarse_(?:forward|backward)<double>", 255, calls=(*OF_DOUBLE, "accurate_pow")),
)

OPERATOR = Operator(
    name="dice_bce_loss_coarse",
    cpu=("dice_bce_loss_coarse.cpp",),
    cuda=("dice_bce_loss_coarse.cu", "dice_bce_loss_coarse_backward.cu", "dice_ce_loss_combine.cu"),
    cases={
        "options": every_option(OPTIONS, CHANNELS, lambda i: LABELS[(i + i // 5) % 5]),
        "nothing": [case(n=0, map=1)],
    },
    large={"several tiles and pieces": LARGE},
    traffic=TRAFFIC,
    mutants=mutants.MUTANTS,
    mutant_cases=mutants.CASES,
    limits=LIMITS,
)
