"""dilated_conv2d and its gradients on the ladder. The driver holds the kernels against the definition."""

from __future__ import annotations

from tests.ladder.operator import COLLECTIVES, INDEX, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops.dilated_conv_cases import LAST, cases, tiles
from tests.ladder.ops.dilated_conv_mutants import MUTANT_CASES, MUTANTS

TAPS, TILE = 9, 128  # of the cases of traffic; destination pixels of a block


def traffic(shown: str, op: str, dtype: str, planar: bool, read: float, **options: object) -> Traffic:
    """3 x 3 on 64 channels of 32 x 32 pixels. `read`: times what a block of the product asks for, if nothing is cached.

    That is each source at each tap, less what the border leaves out, and in each block all weights.
    """
    element = {"float32": 4, "bfloat16": 2}[dtype]
    image, weights = 64 * 32 * 32 * element, 64 * 64 * TAPS * element
    line = case(op=op, dtype=dtype, c=64, out=64, h=32, w=32, **options, **({} if planar else LAST))
    inside = (32 * 3 - 2) ** 2 * 64 * element
    product = Moves(Bytes(inside + 32 * 32 // TILE * weights, read), Bytes(image, 1.0))
    # Packing turns [out, in, taps] round: what it reads in sectors is cached before it is read again.
    packing = Moves(Bytes(weights, 9), Bytes(weights, 1.0))
    return Traffic(shown, line, {"dilated_conv_gemm": product, "dilated_conv_pack": packing})


def weight_traffic(shown: str, dtype: str, planar: bool, read: float, fast: bool = False) -> Traffic:
    """3 x 3 on 64 channels of 16 x 16 pixels. `read`: times both images; the input is read at nine taps, less what the
    border leaves out, and the gradient once for each of five tiles of 128 columns."""
    element = {"float32": 4, "bfloat16": 2}[dtype]
    parts = -(-16 * 16 * element // 64 // 16)
    columns = 5 * 128
    line = case(op="grad_weight", dtype=dtype, c=64, out=64, h=16, w=16, fast=fast, **({} if planar else LAST))
    sums = parts * 64 * columns * 4
    return Traffic(
        shown,
        line,
        {
            "dilated_conv_grad_weight": Moves(Bytes(2 * 64 * 256 * element, read), Bytes(sums, 1.0)),
            # Lanes are side by side in the sums, and apart in the weights: a sector for each.
            "dilated_conv_grad_weight_combine": Moves(
                Bytes(parts * 64 * 576 * 4, 1.0), Bytes(64 * 576 * element, 32 / element)
            ),
        },
    )


def depthwise_traffic(shown: str, op: str, layout: dict[str, object], read: float, written: float = 1.0) -> Traffic:
    image = 64 * 32 * 32 * 2
    line = case(op=op, dtype="bfloat16", c=64, out=64, groups=64, h=32, w=32, **layout)
    if op == "grad_weight":
        return Traffic(
            shown,
            line,
            {"dilated_conv_grad_weight_direct": Moves(Bytes(2 * image, read), Bytes(64 * TAPS * 2, written))},
        )
    return Traffic(shown, line, {"dilated_conv_direct": Moves(Bytes(image, read), Bytes(image, written))})


TRAFFIC = (
    traffic("bfloat16, channels_last", "forward", "bfloat16", False, 1.01),
    traffic("float32, channels_last", "forward", "float32", False, 1.01),
    traffic("float32 as TF32, channels_last", "forward", "float32", False, 1.01, fast=True),
    # A row of 32 pixels that is moved by a column ends in one sector more.
    traffic("bfloat16, planar", "forward", "bfloat16", True, 1.3),
    traffic("float32 as TF32, planar", "forward", "float32", True, 1.3, fast=True),
    traffic("bfloat16, channels_last", "grad_input", "bfloat16", False, 1.01),
    weight_traffic("bfloat16, channels_last", "bfloat16", False, 6.7),
    weight_traffic("bfloat16, planar", "bfloat16", True, 7.3),
    weight_traffic("float32, channels_last", "float32", False, 6.7),
    weight_traffic("float32 as TF32, planar", "float32", True, 7.3, fast=True),
    # Each source at nine taps, and the weights one by one for a strip of four pixels.
    depthwise_traffic("depthwise, bfloat16, channels_last", "forward", LAST, 22),
    depthwise_traffic("depthwise, bfloat16, planar", "forward", {}, 22),
    depthwise_traffic("depthwise, bfloat16, channels_last", "grad_weight", LAST, 9, 16),
    depthwise_traffic("depthwise, bfloat16, planar", "grad_weight", {}, 11, 16),
)

SIGMOID = ("rcp_rn_f32_slowpath", *COLLECTIVES)
# "planar" and "rows" stand for false and true: whether numbers are gathered one by one, or 16 bytes are copied.
LIMITS = (
    Limit(
        r"dilated_conv_gemm<Matrix<.*>, planar>",
        168,
        at_least={"mma": 32, "ldsm": 12, "ldgsts": 6, "ldg128": 1, "stg128": 2},
        calls=SIGMOID,
    ),
    Limit(
        r"dilated_conv_gemm<Matrix<.*>, rows>",
        255,
        at_least={"mma": 32, "ldsm": 12, "ldgsts": 2, "ldg128": 1, "stg128": 2},
        calls=SIGMOID,
    ),
    Limit(
        r"dilated_conv_gemm<Scalar, .*>",
        255,
        at_least={"ffma": 512, "lds128": 64, "ldgsts": 2, "ldg128": 1, "stg128": 2},
        calls=SIGMOID,
    ),
    Limit(r"dilated_conv_pack<.*>", 48, at_least={"stg128": 1}),
    Limit(r"dilated_conv_direct<double, .*>", 96, calls=("dblrcp_rn_slowpath_v3", *COLLECTIVES)),
    Limit(r"dilated_conv_direct<.*, 1>", 80, calls=SIGMOID),
    Limit(r"dilated_conv_direct<.*, [48]>", 128, at_least={"ldg128": 1, "stg128": 1}, calls=SIGMOID),
    # The first pixel of a part is a quotient in 64 bits, once a thread.
    Limit(
        r"dilated_conv_grad_weight<TurnedMatrix<.*>, planar>",
        192,
        at_least={"mma": 32, "ldsm": 12, "ldgsts": 6},
        calls=(*INDEX, *COLLECTIVES),
    ),
    Limit(
        r"dilated_conv_grad_weight<TurnedMatrix<.*>, rows>",
        255,
        at_least={"mma": 32, "ldsm": 12},
        calls=(*INDEX, *COLLECTIVES),
    ),
    Limit(r"dilated_conv_grad_weight<TurnedTf32, .*>", 255, at_least={"mma": 16}, calls=(*INDEX, *COLLECTIVES)),
    Limit(
        r"dilated_conv_grad_weight<TurnedScalar, .*>",
        255,
        at_least={"ffma": 128, "lds128": 4, "stg128": 16},
        calls=(*INDEX, *COLLECTIVES),
    ),
    Limit(r"dilated_conv_grad_weight_combine<.*>", 48),
    Limit(r"dilated_conv_grad_weight_direct<.*>", 96),
    # For sm_100, ptxas guards tensor memory with subroutines.
    Limit(r"triton dilated_conv \(float32\)", 192, at_least={"ldg128": 1, "stg128": 8}),
    # A few registers are spilled once, before the loop over taps.
    Limit(r"triton dilated_conv \(grad_input, float32\)", 192, spill_bytes=16, stack=16, at_least={"stg128": 8}),
    Limit(
        r"triton dilated_conv \(grad_input, float32 as TF32\)",
        160,
        spill_bytes=16,
        stack=16,
        at_least={"mma": 4, "stg128": 8},
        at_least_of={90: {"hgmma": 4}},
        calls=("subroutine",),
    ),
    Limit(
        r"triton dilated_conv \(.*\)",
        255,
        at_least={"mma": 4, "stg128": 8},
        at_least_of={90: {"hgmma": 4}},
        calls=("subroutine",),
    ),
    Limit(r"triton dilated_conv_direct .*", 80, at_least={"ldg128": 1, "stg128": 1}),
    Limit(r"triton dilated_conv_grad_weight_direct .*", 80, at_least={"ldg128": 2}),
    Limit(r"triton dilated_conv_grad_weight \(grad_weight, float32\)", 192, at_least={"stg128": 8}),
    Limit(
        r"triton dilated_conv_grad_weight \(.*\)",
        144,
        at_least={"mma": 4, "stg128": 8},
        at_least_of={90: {"hgmma": 4}},
        calls=("subroutine",),
    ),
    Limit(r"triton dilated_conv_combine .*", 40, at_least={"ldg128": 4, "stg128": 1}),
)

OPERATOR = Operator(
    name="dilated_conv",
    cpu=("dilated_conv.cpp",),
    cuda=("dilated_conv.cu", "dilated_conv_gemm.cu", "dilated_conv_grad_input.cu", "dilated_conv_grad_weight.cu"),
    cases={
        **{op: cases(op) for op in ("forward", "grad_input", "grad_weight")},
        "tiles": [line for op in ("forward", "grad_input", "grad_weight") for line in tiles(op)],
        "nothing": [case(op=op, dtype="bfloat16", n=0, c=8, out=8) for op in ("forward", "grad_input", "grad_weight")],
    },
    traffic=TRAFFIC,
    mutants=MUTANTS,
    mutant_cases=MUTANT_CASES,
    limits=LIMITS,
)
