"""dice_bce_loss on the ladder: what its kernels may move, and the limits of their machine code."""

from __future__ import annotations

import itertools

from tests.ladder.operator import OF_DOUBLE, OF_FLOAT, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops import dice_bce_loss_cases as cases
from tests.ladder.ops import dice_bce_loss_mutants as mutants
from tests.ladder.ops import dice_bce_loss_triton as triton

ELEMENT = {"float32": 4, "bfloat16": 2, "uint8": 1}


def traffic(
    dtype: str,
    label: str,
    channels: int,
    layout: str,
    read: float = 1.02,
    sums: float = 0.03,
    conflicts: tuple[float, float] = (0.0, 0.0),
    pixels: int = 32768,
    images: int = 1,
    anywhere: bool = False,
) -> Traffic:
    """Logits and labels are read once, and the gradient is written once.

    read: by backward, with its channels' constants; forward has none without pos_weight.
    sums: of the inputs, that blocks of forward leave for the kernel that adds them up.
    conflicts: of forward, of backward.
    anywhere: logits, labels and gradient begin within a sector, each elsewhere in it.
    """
    elements = images * channels * pixels
    logits, labels = elements * ELEMENT[dtype], elements * ELEMENT[label]
    floor, partial = logits + labels, Bytes(0, beside=sums * (logits + labels))
    # A run of elements that begins anywhere has a sector more than its elements fill.
    once = 1.025 if anywhere else 1.01
    places = {"offset": 1, "target_offset": 3, "result_offset": 2} if anywhere else {}
    shown = f"{dtype}, {label} labels, {images} x {channels} x {pixels}, {layout}"
    return Traffic(
        shown + (", anywhere" if anywhere else ""),
        case(dtype=dtype, label=label, c=channels, s=pixels, n=images, layout=layout, **places),
        {
            "dice_bce_loss_forward": Moves(Bytes(floor, once), partial, conflicts[0]),
            "dice_ce_loss_combine": Moves(partial, partial),
            "dice_bce_loss_backward": Moves(Bytes(floor, read), Bytes(logits, once), conflicts[1]),
        },
    )


#: Odd numbers of pixels, of images large enough that blocks are as large as their sums and constants ask for.
ODD = {"images": 2, "anywhere": True}
TRAFFIC = [
    *(
        traffic(dtype, "uint8", channels, "planar")
        for dtype, channels in itertools.product(("float32", "bfloat16"), (1, 3, 19))
    ),
    *(traffic("bfloat16", "float32", channels, "planar") for channels in (1, 19)),
    # Planes of whole vectors that begin within a sector.
    traffic("float32", "uint8", 3, "planar", pixels=36900, images=2),
    traffic("bfloat16", "uint8", 3, "planar", pixels=36904, images=2),
    # Blocks leave three sums of each of many channels, and of images this small they are small, lest multiprocessors be
    # idle.
    traffic("float32", "uint8", 3, "channels_last", sums=0.04, conflicts=(0.3, 0.0)),
    traffic("bfloat16", "uint8", 3, "channels_last", sums=0.04, conflicts=(0.4, 0.0)),
    traffic("float32", "uint8", 19, "channels_last", 1.03, 0.04, conflicts=(0.3, 0.0), pixels=65536),
    traffic("bfloat16", "uint8", 19, "channels_last", 1.03, 0.045, conflicts=(0.4, 0.0), pixels=65536),
    traffic("float32", "uint8", 150, "channels_last", 1.03, 0.05, conflicts=(0.2, 0.7), pixels=40960),
    # Memory that begins anywhere.
    traffic("float32", "uint8", 3, "planar", 1.04, conflicts=(0.01, 0.01), pixels=425**2, **ODD),
    traffic("bfloat16", "uint8", 3, "planar", 1.04, conflicts=(0.01, 0.01), pixels=425**2, **ODD),
    traffic("bfloat16", "float32", 1, "planar", 1.04, conflicts=(0.01, 0.01), pixels=425**2, **ODD),
    traffic("float32", "uint8", 3, "channels_last", 1.04, sums=0.04, pixels=425**2, conflicts=(0.2, 0.01), **ODD),
    traffic("bfloat16", "uint8", 3, "channels_last", 1.04, sums=0.04, pixels=425**2, conflicts=(0.2, 0.01), **ODD),
    traffic("bfloat16", "uint8", 19, "channels_last", 1.04, sums=0.04, pixels=239**2, conflicts=(0.2, 0.01), **ODD),
]

_HALF_OR_SINGLE = "(?:float|bfloat16|float16)"

#: Two blocks of 256 threads on a multiprocessor. Vectors are 16 bytes of logits, or half of that beside wider labels;
#: the loads of labels are of all their types.
LIMITS = (
    Limit(rf"dice_bce_loss_forward<{_HALF_OR_SINGLE}, [48], \w+>", 128, at_least={"ldg128": 1}, calls=OF_FLOAT),
    Limit(r"dice_bce_loss_backward<(?:float, 4|b?float16, 8), \w+>", 128, 0, 0, {"ldg128": 1, "stg128": 1}, OF_FLOAT),
    Limit(r"dice_bce_loss_backward<b?float16, 4, \w+>", 128, 0, 0, {"ldg128": 1, "stg64": 1}, OF_FLOAT),
    Limit(rf"dice_bce_loss_(?:forward|backward)<{_HALF_OR_SINGLE}, 1, \w+>", 128, 0, 0, {"ldgsts": 1}, OF_FLOAT),
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
