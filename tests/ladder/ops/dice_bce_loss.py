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
    times: float = 1.05,
    written: float = 1.05,
    constants: float = 0.08,
    sums: float = 0.05,
    aligned: bool = True,
    conflicts: float = 0.0,
) -> Traffic:
    """Logits and labels are read once, and the gradient is written once: at most so many `times`.

    constants: of the inputs, for what each thread of backward reads of its channels before its two vectors; a thread
        of a large input has up to sixteen.
    sums: of the inputs, for the sums of blocks.
    """
    pixels = PIXELS if aligned else ODD_PIXELS
    logits, labels = channels * pixels * ELEMENT[dtype], channels * pixels * ELEMENT[label]
    floor = logits + labels
    inputs, partial = Bytes(floor, times), Bytes(0, beside=sums * floor)
    return Traffic(
        f"{dtype}, {label} labels, {channels} channels, {layout}" + ("" if aligned else ", unaligned"),
        case(dtype=dtype, label=label, c=channels, s=pixels, layout=layout),
        {
            "dice_bce_loss_forward": Moves(inputs, partial, conflicts),
            "dice_ce_loss_combine": Moves(partial, partial),
            "dice_bce_loss_backward": Moves(Bytes(floor, times, constants * floor), Bytes(logits, written)),
        },
    )


TRAFFIC = [
    *(
        traffic(dtype, "uint8", channels, "planar")
        for dtype, channels in itertools.product(("float32", "bfloat16"), (1, 3, 19))
    ),
    # Eight labels of four bytes are two accesses that share sectors: the second is for the first-level cache.
    *(traffic("bfloat16", "float32", channels, "planar", 1.67) for channels in (1, 19)),
    # A row is whole pixels: its last vectors may end within a sector. The more channels, the fewer elements of each a
    # block has, and the more sums for its size.
    traffic("float32", "uint8", 3, "channels_last", 1.08, constants=0.4, conflicts=0.4),
    traffic("float32", "uint8", 19, "channels_last", 1.08, constants=1.2, sums=0.1, conflicts=1.1),
    traffic("bfloat16", "uint8", 3, "channels_last", 1.08, constants=0.6, conflicts=0.9),
    traffic("bfloat16", "uint8", 19, "channels_last", 1.08, constants=2.0, sums=0.12, conflicts=0.5),
    traffic("float32", "uint8", 150, "channels_last", 1.08, constants=2.5, sums=0.17, conflicts=1.25),
    # Lines that begin anywhere cost a sector a request.
    traffic("float32", "uint8", 3, "planar", 1.3, 1.2, constants=0.16, sums=0.06, aligned=False),
    traffic("bfloat16", "uint8", 3, "channels_last", 1.7, 1.5, constants=0.4, sums=0.12, aligned=False, conflicts=0.2),
]

_HALF_OR_SINGLE = "(?:float|bfloat16|float16)"

#: Two blocks of 256 threads on a multiprocessor. Vectors are 16 bytes of logits; the loads of labels are of all their
#: types.
LIMITS = (
    Limit(rf"dice_bce_loss_forward<{_HALF_OR_SINGLE}, [48], \w+>", 128, at_least={"ldg128": 1}, calls=OF_FLOAT),
    Limit(rf"dice_bce_loss_backward<{_HALF_OR_SINGLE}, [48], \w+>", 128, 0, 0, {"ldg128": 1, "stg128": 1}, OF_FLOAT),
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
