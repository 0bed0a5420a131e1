"""dice_ce_loss on the ladder: what its kernels may move, and the limits of their machine code."""

from __future__ import annotations

import itertools

from tests.ladder.operator import INDEX, OF_DOUBLE, OF_FLOAT, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops import dice_ce_loss_cases as cases
from tests.ladder.ops import dice_ce_loss_mutants as mutants

PIXELS, FEWER_PIXELS = 32768, 8192
ODD_PIXELS, FEWER_ODD_PIXELS = 181 * 181, 91 * 91  # planes that begin anywhere, of about as many pixels
ELEMENT = {"float32": 4, "bfloat16": 2}
LABEL = 8


def traffic(
    dtype: str,
    classes: int,
    layout: str,
    conflicts: tuple[float, float],
    read: float = 1.05,
    written: float = 1.05,
    aligned: bool = True,
) -> Traffic:
    """Logits and labels are read once, and the gradient is written once; conflicts of forward and of backward."""
    if classes > 32:
        pixels = FEWER_PIXELS if aligned else FEWER_ODD_PIXELS
    else:
        pixels = PIXELS if aligned else ODD_PIXELS
    logits = classes * pixels * ELEMENT[dtype]
    # Constants of the loss and sums of a chunk are a hundredth at most, in chunks of 1024 pixels.
    inputs, sums = Bytes(logits + LABEL * pixels, read), Bytes(0, beside=0.05 * (logits + LABEL * pixels))
    return Traffic(
        f"{dtype}, {classes} classes, {layout}" + ("" if aligned else ", unaligned"),
        case(dtype=dtype, c=classes, s=pixels, layout=layout, offset=not aligned),
        {
            "dice_ce_loss_forward(_sweep)?": Moves(inputs, sums, conflicts[0]),
            "dice_ce_loss_combine": Moves(sums, sums),
            "dice_ce_loss_value": Moves(sums, sums),
            "dice_ce_loss_backward(_sweep)?": Moves(inputs, Bytes(logits, written), conflicts[1]),
        },
    )


TRAFFIC = [
    # Rows of two-byte elements share banks where they are no multiple of 16 bytes; labels and weights of eight pixels a
    # lane are read at twice the stride that the banks serve at once.
    *(
        traffic(dtype, classes, layout, (0.0, 0.0) if dtype == "float32" else (0.25, 0.45))
        for dtype, classes, layout in itertools.product(ELEMENT, (3, 19, 32), cases.LAYOUTS)
    ),
    # More classes are read twice.
    *(traffic(dtype, 150, "planar", (0.07, 0.1), read=2.0) for dtype in ELEMENT),
    # Staged. A row of 150 floats is an even number of words: two lanes share a bank.
    *(traffic(dtype, 150, "channels_last", (0.45, 0.45)) for dtype in ELEMENT),
    # Planes that begin anywhere cost a sector a request.
    *(
        traffic(dtype, classes, "planar", (0.0, 0.0), limit, limit, aligned=False)
        for dtype, limit in (("float32", 1.26), ("bfloat16", 1.51))
        for classes in (3, 19, 32)
    ),
    *(
        traffic(dtype, 150, "planar", (0.07, 0.1), 2 * limit, limit, aligned=False)
        for dtype, limit in (("float32", 1.26), ("bfloat16", 1.51))
    ),
    # Rows that begin anywhere go by elements: neighbours of a row come one after the other.
    traffic("float32", 19, "channels_last", (0.0, 0.0), 7.5, 8.0, aligned=False),
    traffic("bfloat16", 19, "channels_last", (0.0, 0.0), 13.5, 16.0, aligned=False),
]

_HALF_OR_SINGLE = "(?:float|bfloat16|float16)"

#: 65536 registers are 8 warps a multiprocessor at 255, 16 at 128. The kernels that hold all logits of a pixel hide
#: latency by their many loads in flight and not by many warps.
LIMITS = (
    # 16-bit logits of many classes, 4 pixels a lane (kOwned in dice_ce_loss_tile.cuh): one access for two classes.
    *(
        limit
        for held in (24, 32)
        for pairs in (held // 2,)
        for limit in (
            Limit(f"dice_ce_loss_forward<b?float16, {held}, planar>", 255, at_least={"ldg128": pairs}, calls=OF_FLOAT),
            Limit(
                f"dice_ce_loss_backward<b?float16, {held}, planar>",
                255,
                at_least={"ldg128": pairs, "stg128": pairs},
                calls=OF_FLOAT,
            ),
        )
    ),
    Limit(rf"dice_ce_loss_forward<{_HALF_OR_SINGLE}, \d+, planar>", 255, at_least={"ldg128": 8}, calls=OF_FLOAT),
    Limit(
        rf"dice_ce_loss_backward<{_HALF_OR_SINGLE}, \d+, planar>",
        255,
        at_least={"ldg128": 8, "stg128": 8},
        calls=OF_FLOAT,
    ),
    # Rows are copied through shared memory, 16 bytes at a time.
    Limit(rf"dice_ce_loss_forward<{_HALF_OR_SINGLE}, \d+, rows>", 128, 0, 0, {"ldgsts": 1, "lds128": 1}, OF_FLOAT),
    Limit(rf"dice_ce_loss_backward<{_HALF_OR_SINGLE}, \d+, rows>", 128, 0, 0, {"ldgsts": 1, "stg128": 1}, OF_FLOAT),
    Limit(rf"dice_ce_loss_forward_sweep<{_HALF_OR_SINGLE}, planar>", 248, 0, 0, {"ldg128": 8}, OF_FLOAT),
    Limit(rf"dice_ce_loss_backward_sweep<{_HALF_OR_SINGLE}, planar>", 248, 0, 0, {"ldg128": 8, "stg128": 8}, OF_FLOAT),
    Limit(rf"dice_ce_loss_forward_sweep<{_HALF_OR_SINGLE}, rows>", 128, 0, 0, {"ldgsts": 1, "lds128": 1}, OF_FLOAT),
    Limit(rf"dice_ce_loss_backward_sweep<{_HALF_OR_SINGLE}, rows>", 128, 0, 0, {"ldgsts": 1, "stg128": 1}, OF_FLOAT),
    Limit(r"dice_ce_loss_(?:forward|backward)(?:_sweep)?<double, .*>", 255, 48, 48, calls=OF_DOUBLE),
    Limit("dice_ce_loss_combine", 64, calls=INDEX),
    Limit("dice_ce_loss_value", 64, calls=OF_DOUBLE),
    # 128-bit accesses of the Triton kernels depend on the case: tests/triton/test_dice_ce_loss_sass.py.
    Limit(r"triton dice_ce_loss_value .*", 128, 64, 64, calls=("subroutine",)),
    # The row and the column of a pixel are a division in 64 bits.
    Limit(r"triton dice_ce_loss_statistics_sweep .*coarse.*channels_last.*", 248, calls=("subroutine",)),
    Limit(r"triton dice_ce_loss_statistics_sweep .*coarse.*", 128, calls=("subroutine",)),
    Limit(r"triton dice_ce_loss_(?:statistics_tile|statistics_sweep|sums|backward_tile|backward_sweep) .*", 128),
    Limit(r"triton dice_ce_loss_coarse_softmax .*", 168, calls=("subroutine",)),
    Limit(r"triton dice_ce_loss_coarse_gather .*", 192, 8, 8, calls=("subroutine",)),
)

OPERATOR = Operator(
    name="dice_ce_loss",
    cpu=("dice_ce_loss.cpp",),
    cuda=("dice_ce_loss.cu", "dice_ce_loss_backward.cu", "dice_ce_loss_combine.cu", "dice_ce_loss_value.cu"),
    cases={"templates": cases.every_template(), "options": cases.every_option(), "nothing": cases.nothing()},
    large=cases.several_images_of_several_chunks(),
    traffic=TRAFFIC,
    mutants=mutants.MUTANTS,
    mutant_cases=mutants.CASES,
    limits=LIMITS,
)
