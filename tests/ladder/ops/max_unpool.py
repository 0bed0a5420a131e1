"""max_pool2d and max_unpool2d on the ladder. The driver holds the CUDA kernels against those of the CPU."""

from __future__ import annotations

from tests.ladder.operator import COLLECTIVES, INDEX, Bytes, Limit, Moves, Operator, Traffic, case
from tests.ladder.ops.max_unpool_cases import CASES, LARGE, LAST, window
from tests.ladder.ops.max_unpool_fuzz import draw
from tests.ladder.ops.max_unpool_mutants import MUTANT_CASES, MUTANTS

BYTES = {"float32": 4, "bfloat16": 2, "float64": 8, "uint8": 1}
C, H, W = 16, 32, 64  # of an image of windows


def traffic(
    shown: str,
    op: str,
    kernel: str,
    dtype: str = "float32",
    scale: int = 2,
    read: float = 1.0,
    record: bool = False,
    **options: object,
) -> Traffic:
    """read: as a multiple of the floor, which is each element once; what is written is written once."""
    windows, fine = C * H * W, C * H * W * scale * scale * BYTES[dtype]
    coarse = windows * BYTES[dtype]
    reads, writes = {
        "pool": (fine, coarse + windows),
        "unpool": (coarse + windows, fine),
        "unpool_backward": (fine + windows, coarse),
    }[op]
    kernels = {kernel: Moves(Bytes(reads, read), Bytes(writes, 1.0))}
    if record:
        kernels |= RECORD
    if op == "unpool":
        options["record"] = record
    line = case(op=op, dtype=dtype, c=C, h=H, w=W, H=H * scale, W=W * scale, **options)
    return Traffic(f"{shown}, {op}", line, kernels)


#: A sector for each of three fields.
RECORD = {
    "max_unpool_begin_record": Moves(Bytes(0), Bytes(24, 4.0)),
    "max_unpool_end_record": Moves(Bytes(32), Bytes(0)),
}
THREE = window(3, 2, 1)


def flat(shown: str, dtype: str, write_read: float, **options: object) -> Traffic:
    """Of the indices every one claims; atomics are not counted here."""
    windows, fine = C * H * W, 4 * C * H * W
    value = BYTES[dtype]
    kernels = {
        "max_unpool_flat_clear": Moves(Bytes(0), Bytes(4 * fine, 1.0)),
        "max_unpool_flat_claim": Moves(Bytes(8 * windows, 1.0), Bytes(0)),
        # A winner is asked for by the element that it has: a sector each.
        "max_unpool_flat_write": Moves(Bytes(4 * fine, write_read), Bytes(value * fine, 1.0)),
    }
    line = case(op="flat", dtype=dtype, c=C, h=H, w=W, H=2 * H, W=2 * W, record=0, **options)
    return Traffic(f"{shown}, flat", line, kernels)


def flat_backward(dtype: str) -> Traffic:
    windows, value = C * H * W, BYTES[dtype]
    # Each window asks for the sector of the element it points at.
    kernels = {
        "max_unpool_flat_pick": Moves(Bytes(8 * windows + 4 * value * windows, 2.0), Bytes(value * windows, 1.0))
    }
    return Traffic(
        f"{dtype}, flat_backward", case(op="flat_backward", dtype=dtype, c=C, h=H, w=W, H=2 * H, W=2 * W), kernels
    )


def flat_sum(dtype: str) -> Traffic:
    """Second derivatives: sums in float, an element at a time, behind a warp's own order of the windows."""
    windows, fine, value = C * H * W, 4 * C * H * W, BYTES[dtype]
    kernels = {
        "max_unpool_flat_clear": Moves(Bytes(0), Bytes(4 * fine, 1.0)),
        "max_unpool_flat_sum": Moves(Bytes((8 + value + 4) * windows, 4.0), Bytes(4 * windows, 8.0)),
        "max_unpool_flat_round": Moves(Bytes(4 * fine, 1.0), Bytes(value * fine, 1.0)),
    }
    line = case(op="flat", dtype=dtype, c=C, h=H, w=W, H=2 * H, W=2 * W, record=0, accumulate=1)
    return Traffic(f"{dtype}, flat, accumulate", line, kernels)


TRAFFIC = (
    traffic("float32, 2x2", "unpool", "max_unpool_pairs"),
    traffic("float32, 2x2, record", "unpool", "max_unpool_pairs", record=True),
    traffic("bfloat16, 2x2", "unpool", "max_unpool_pairs", "bfloat16"),
    traffic("uint8, 2x2", "unpool", "max_unpool_pairs", "uint8"),
    traffic("float32, 2x2, channels_last", "unpool", "max_unpool_squares", **LAST),
    traffic("bfloat16, 2x2, channels_last", "unpool", "max_unpool_squares", "bfloat16", **LAST),
    traffic("float32, 3x3", "unpool", "max_unpool_gather", read=6.0, **THREE),
    Traffic(
        "float32, 3x3, record, unpool",
        case(op="unpool", dtype="float32", c=C, h=H, w=W, H=2 * H, W=2 * W, record=1, **THREE),
        {
            "max_unpool_gather": Moves(Bytes(5 * C * H * W, 6.0), Bytes(16 * C * H * W, 1.0)),
            "max_unpool_check": Moves(Bytes(C * H * W, 1.0), Bytes(0)),
            **RECORD,
        },
    ),
    traffic("float32, 2x2", "pool", "max_pool_pairs"),
    traffic("bfloat16, 2x2", "pool", "max_pool_pairs", "bfloat16"),
    traffic("float32, 2x2, channels_last", "pool", "max_pool", **LAST),
    traffic("bfloat16, 2x2, channels_last", "pool", "max_pool", "bfloat16", **LAST),
    traffic("float32, 3x3", "pool", "max_pool", read=5.0, **THREE),
    traffic("float32, 2x2", "unpool_backward", "max_unpool_pairs_backward"),
    traffic("bfloat16, 2x2", "unpool_backward", "max_unpool_pairs_backward", "bfloat16"),
    traffic("float32, 2x2, channels_last", "unpool_backward", "max_unpool_squares_backward", **LAST),
    traffic("float32, 3x3", "unpool_backward", "max_unpool_pick", read=1.6, **THREE),
    flat("float32", "float32", 3.0),
    flat("float32, channels_last", "float32", 3.0, **LAST),
    flat_backward("float32"),
    flat_sum("bfloat16"),
)

LIMITS = (
    Limit("max_unpool_begin_record<.*>", 16),
    # One thread.
    Limit("max_unpool_end_record<.*>", 40, calls=INDEX),
    # 16 bytes of bytes are unpacked; positions of bad ones are 64 bits wide.
    Limit("max_unpool_pairs<unsigned char>", 96, at_least={"stg128": 2}),
    Limit("max_unpool_pairs<.*>", 72, at_least={"stg128": 2, "ldg64": 1}),
    Limit("max_unpool_squares<.*>", 96, at_least={"stg128": 4, "ldg128": 1}),
    Limit("max_unpool_gather<.*, 1, .*>", 64),
    Limit("max_unpool_gather<.*>", 64, at_least={"stg128": 1, "ldg128": 1}),
    Limit("max_unpool_check<1, .*>", 64),
    Limit("max_unpool_check<.*>", 96, at_least={"ldg128": 1}),
    Limit("max_unpool_pairs_backward<.*>", 64, at_least={"ldg128": 2, "stg64": 1}),
    Limit("max_unpool_squares_backward<.*>", 64, at_least={"ldg128": 4, "stg128": 1}),
    Limit("max_unpool_pick<.*>", 64),
    Limit("max_pool_pairs<.*>", 64, at_least={"ldg128": 2, "stg64": 1}),
    Limit("max_pool<.*, 1>", 64),
    Limit("max_pool<.*>", 64, at_least={"ldg128": 1, "stg128": 1}),
    Limit("max_unpool_flat_clear", 32, calls=("div_u64",), at_least={"stg128": 1}),  # how often its loop runs
    # A warp for each plane.
    Limit("max_unpool_flat_sum<.*>", 96, calls=COLLECTIVES),
    Limit("max_unpool_flat_write<.*, 1, .*>", 64),
    Limit("max_unpool_flat_write<.*>", 80, at_least={"stg128": 1}),
    Limit("max_unpool_flat_(?:claim|(?:round|pick)<.*>)", 64),
    # Nine taps are on their way at once; in the backward pass each element has four windows of its own.
    Limit(r"triton max_pool \(3x3, .*\)", 128, at_least={"stg128": 1}),
    Limit(r"triton max_pool \(2x2, .*\)", 64, at_least={"ldg128": 4, "stg128": 1}),
    Limit(r"triton max_pool \(.*\)", 64, at_least={"stg128": 1}),
    # For sm_80 the shuffles behind a branch are a subroutine. It is taken where something points nowhere.
    Limit(r"triton max_unpool_pairs \(.*\)", 64, at_least={"stg128": 2}, calls=("subroutine",)),
    Limit(r"triton max_unpool \(.*\)", 64, at_least={"stg128": 1}),
    Limit(r"triton max_unpool_check \(.*\)", 48),
    Limit(r"triton max_unpool_backward \(3x3, .*\)", 128, at_least={"stg128": 1}),
    Limit(r"triton max_unpool_backward \(.*\)", 48, at_least={"stg128": 1}),
    Limit(r"triton max_unpool_flat_mark \(.*\)", 64, at_least={"ldg128": 2}, calls=("subroutine",)),
    Limit(r"triton max_unpool_flat_sum \(.*\)", 128, at_least={"stg128": 1}),
    Limit(r"triton max_unpool_flat(_backward)? \(.*\)", 64, at_least={"ldg128": 2, "stg128": 1}),
    # One element, found by divisions of 64 bits.
    Limit(r"triton max_unpool_record \(.*\)", 48, calls=("subroutine",)),
)

OPERATOR = Operator(
    name="max_unpool",
    cpu=("max_unpool.cpp",),
    cuda=("max_unpool.cu", "max_unpool_pool.cu", "max_unpool_flat.cu"),
    cases=CASES,
    large=LARGE,
    traffic=TRAFFIC,
    mutants=MUTANTS,
    mutant_cases=MUTANT_CASES,
    limits=LIMITS,
    fuzz=draw,
)
