"""dice_bce_loss on the ladder: what its kernels may move, and the limits of their machine code."""

from __future__ import annotations

import itertools

from tests.ladder.operator import OF_DOUBLE, OF_FLOAT, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops import dice_bce_loss_cases as cases
from tests.ladder.ops import dice_bce_loss_mutants as mutants
from tests.ladder.ops import dice_bce_loss_triton as triton

PIXELS, ODD_PIXELS = 32768, 181 * 181
ELEMENT = {"float32": 4, "bfloat16": 2, "uint8": 1}


def traffic(
    dtype: str,
    label: str,
    channels: int,
    layout: str,
    read: float = 1.05,
    sums: float = 0.05,
    aligned: bool = True,
    conflicts: tuple[float, float] = (0.0, 0.0),
) -> Traffic:
    """Logits and labels are read once, and the gradient is written once.

    read: by backward, with its channels' constants; forward has none without pos_weight.
    sums: of the inputs, that blocks of forward leave for the kernel that adds them up.
    conflicts: of forward, of backward.
    """
    pixels = PIXELS if aligned else ODD_PIXELS
    logits, labels = channels * pixels * ELEMENT[dtype], channels * pixels * ELEMENT[label]
    floor = logits + labels
    partial = Bytes(0, beside=sums * floor)
    return Traffic(
        f"{dtype}, {label} labels, {channels} channels, {layout}" + ("" if aligned else ", unaligned"),
        case(dtype=dtype, label=label, c=channels, s=pixels, layout=layout),
        {
            "dice_bce_loss_forward": Moves(Bytes(floor, 1.01), partial, conflicts[0]),
            "dice_ce_loss_combine": Moves(partial, partial),
            "dice_bce_loss_backward": Moves(Bytes(floor, read), Bytes(logits, 1.01), conflicts[1]),
        },
    )


TRAFFIC = [
    *(
        traffic(dtype, "uint8", channels, "planar", 1.02)
        for dtype, channels in itertools.product(("float32", "bfloat16"), (1, 3, 19))
    ),
    *(traffic("bfloat16", "float32", channels, "planar", 1.02) for channels in (1, 19)),
    # Blocks leave three sums of each of many channels. These images are small, and cut into 171 to 256 blocks, lest
    # multiprocessors be idle: 128 to 192 pixels a block. Of four images of 512 by 512 pixels a block has more.
    traffic("float32", "uint8", 3, "channels_last", 1.02, conflicts=(0.3, 0.0)),
    traffic("float32", "uint8", 19, "channels_last", 1.05, 0.06, conflicts=(0.3, 0.0)),
    traffic("bfloat16", "uint8", 3, "channels_last", 1.02, conflicts=(0.4, 0.0)),
    traffic("bfloat16", "uint8", 19, "channels_last", 1.05, 0.075, conflicts=(0.4, 0.0)),
    traffic("float32", "uint8", 150, "channels_last", 1.05, 0.056, conflicts=(0.2, 0.7)),
    # Lines that begin anywhere are read element by element: blocks are a quarter as large, and so is what a block's
    # constants and sums are beside.
    traffic("float32", "uint8", 3, "planar", 1.03, 0.06, aligned=False),
    traffic("bfloat16", "uint8", 3, "channels_last", 1.06, 0.16, aligned=False, conflicts=(0.2, 0.0)),
]

_HALF_OR_SINGLE = "(?:float|bfloat16|float16)"

#: Two blocks of 256 threads on a multiprocessor. Vectors are 16 bytes of logits, or half of that beside wider labels;
#: the loads of labels are of all their types.
LIMITS = (
    Limit(rf"dice_bce_loss_forward<{_HALF_OR_SINGLE}, [48], \w+>", 128, at_least={"ldg128": 1}, calls=OF_FLOAT),
    Limit(r"dice_bce_loss_backward<(?:float, 4|b?float16, 8), \w+>", 128, 0, 0, {"ldg128": 1, "stg128": 1}, OF_FLOAT),
    Limit(r"dice_bce_loss_backward<b?float16, 4, \w+>", 128, 0, 0, {"ldg128": 1, "stg64": 1}, OF_FLOAT),
    Limit(rf"dice_bce_loss_(?:forward|backward)<{_HALF_OR_SINGLE}, 1, \w+>", 128, calls=OF_FLOAT),
    Limit(r"dice_bce_loss_(?:forward|backward)<double, .*>", 128, calls=(*OF_DOUBLE, "accurate_pow")),
    *triton.LIMITS,
)

OPERATOR = Operator(
    name="dice_bce_loss",
    cpu=("dice_bce_loss.cpp",),
    cuda=("dice_bce_loss.cu", "dice_bce_loss_backward.cu", "dice_ce_loss_combine.cu"),
    cases={"templates": cases.every_template(), "places": cases.every_place(), "nothing": cases.nothing()},
    large=cases.several_images_of_several_chunks(),
    traffic=TRAFFIC,
    mutants=mutants.MUTANTS,
    mutant_cases=mutants.CASES,
    limits=LIMITS,
)
