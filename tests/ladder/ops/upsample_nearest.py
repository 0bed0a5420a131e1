"""upsample_nearest2d and bed_of_nails2d on the ladder. The driver holds the CUDA kernels against those of the CPU."""

from __future__ import annotations

from tests.ladder.operator import COLLECTIVES, Bytes, Limit, Moves, Mutant, Operator, Traffic, case, crossed

FORWARD, BACKWARD = "upsample_nearest.cu", "upsample_nearest_backward.cu"
PLANES, MOVE = "planes.cuh", "move.cuh"
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAST = {"coarse_layout": "channels_last", "fine_layout": "channels_last"}

#: One output, rows that fill vectors and that do not, whole and broken scales, tiles, down, scales beside sizes.
SHAPES = (
    {"h": 1, "w": 1, "H": 1, "W": 1},
    {"h": 1, "w": 1, "H": 37, "W": 5},
    {"h": 5, "w": 8, "H": 10, "W": 16, "n": 2},
    {"h": 3, "w": 16, "H": 11, "W": 64},
    {"h": 3, "w": 16, "H": 6, "W": 128},
    {"h": 7, "w": 9, "H": 13, "W": 17},
    {"h": 2, "w": 150, "H": 3, "W": 1100, "c": 1},
    {"h": 21, "w": 40, "H": 9, "W": 16},
    {"h": 6, "w": 8, "H": 12, "W": 32, "scale_h": 2.05, "scale_w": 4.1},
)
LAYOUTS = (
    {},
    {"fine_pad": 3, "fine_offset": 1},
    {"coarse_pad": 8, "fine_pad": 8},
    {"c": 16, **LAST},
    {"c": 5, **LAST},
    {"c": 16, "fine_pad": 8, **LAST},
    {"c": 3, "fine_layout": "channels_last"},
    {"c": 3, "coarse_layout": "channels_last", "fine_gap": 2},
)


def nails(op: str) -> list[str]:
    chosen = [(dtype, {"h": 5, "w": 8, "scale": 2, "n": 2}, layout) for dtype in DTYPES for layout in LAYOUTS]
    chosen += [("float32", {"h": 3, "w": 7, "scale": scale}, layout) for scale in (1, 3, 4) for layout in LAYOUTS]
    return [case(op=op, dtype=dtype, **{**shape, **layout}) for dtype, shape, layout in chosen]


def traffic(shown: str, op: str, dtype: str, scale: int, read: float, **options: object) -> Traffic:
    """read: as a multiple of the floor; what is written is written once."""
    element = {"float32": 4, "bfloat16": 2}[dtype]
    c, h, w = (int(str(options.pop(key, otherwise))) for key, otherwise in (("c", 8), ("h", 64), ("w", 64)))
    height, width = h * scale, w * scale
    coarse, fine = c * h * w * element, c * height * width * element
    sizes = {"scale": scale} if op in ("nails", "picked") else {"H": height, "W": width}
    line = case(op=op, dtype=dtype, c=c, h=h, w=w, **sizes, **options)
    # Whole rows of sectors, of the rows that are read.
    floor = {"nearest": coarse, "nails": coarse, "picked": fine // scale, "backward": fine}[op]
    written = Bytes(fine if op in ("nearest", "nails") else coarse, 1.0)
    kernel = "upsample_nearest"
    if op == "backward":
        kernel += "_backward_whole" if scale in (2, 4) and "coarse_layout" not in options else "_backward"
    return Traffic(shown, line, {kernel: Moves(Bytes(floor, read), written)})


TRAFFIC = (
    # V outputs side by side load their V / scale inputs one by one: each sector is asked for as often.
    traffic("float32, x2", "nearest", "float32", 2, 2.0),
    traffic("bfloat16, x2", "nearest", "bfloat16", 2, 4.0),
    traffic("float32, x4", "nearest", "float32", 4, 1.0, h=32, w=32),
    # A warp has whole runs of pixels that are the same input.
    traffic("float32, x2, channels_last", "nearest", "float32", 2, 1.0, c=64, h=32, w=32, **LAST),
    traffic("bfloat16, x2, channels_last", "nearest", "bfloat16", 2, 1.0, c=64, h=32, w=32, **LAST),
    traffic("nails, float32, x2", "nails", "float32", 2, 2.0),
    traffic("nails, bfloat16, x2, channels_last", "nails", "bfloat16", 2, 1.0, c=64, h=32, w=32, **LAST),
    traffic("picked, float32, x2", "picked", "float32", 2, 4.0),
    traffic("float32, x2", "backward", "float32", 2, 1.0),
    traffic("bfloat16, x2", "backward", "bfloat16", 2, 1.0),
    traffic("float32, x4", "backward", "float32", 4, 1.0, h=32, w=32),
    # An addend at a time, three apart.
    traffic("float32, x3", "backward", "float32", 3, 3.0, h=32, w=32),
    traffic("bfloat16, x2, channels_last", "backward", "bfloat16", 2, 1.0, c=64, h=32, w=32, **LAST),
)

WRONG, PAST, SIXTEEN = "wrong element", "store one past the row", "16-byte access that ignores tail or alignment"
MUTANTS = (
    Mutant("nearest: the row before", WRONG, MOVE, "if (row != held) {", "if (held < 0) {", (3,)),
    Mutant(
        "nearest: a row of the next lane",
        "shuffle from the wrong lane",
        MOVE,
        "device::shuffle(own_source, r)",
        "device::shuffle(own_source, (r + 1) % 32)",
        (3,),
    ),
    Mutant(
        "nearest: a whole vector at the row's end",
        SIXTEEN,
        MOVE,
        "const bool whole = kAcross || first + V <= width;",
        "const bool whole = true;",
        (3, 4, 5),
    ),
    Mutant(
        "nearest: one past the row's end", PAST, MOVE, "if (first + v < width)", "if (first + v <= width)", (3, 4, 5)
    ),
    Mutant(
        "nearest: rows beyond the image",
        "thread that is not masked",
        PLANES,
        "of.rows - row < of.strip ? of.rows - row : of.strip",
        "of.strip",
        (3, 4, 5),
    ),
    Mutant(
        "nails: no zeros",
        WRONG,
        MOVE,
        "at % scale == 0 ? static_cast<int>(at / scale) : -1",
        "static_cast<int>(at / scale)",
        (3,),
    ),
    Mutant("nails: picked as if spread", WRONG, FORWARD, "p.transposed ?", "!p.transposed ?", (3, 4, 5)),
    Mutant(
        "nearest backward: a column less", WRONG, BACKWARD, "int64_t{1})) - from;", "int64_t{1})) - from - 1;", (3,)
    ),
    Mutant(
        "nearest backward: one past the fine row",
        "read one past the row",
        BACKWARD,
        "int64_t{1})) - from;",
        "int64_t{1})) - from + 1;",
        (3, 4, 5),
    ),
    Mutant(
        "nearest backward: rows of the lane before",
        "shuffle from the wrong lane",
        BACKWARD,
        "device::shuffle(own_first, r + 1) - first",
        "device::shuffle(own_first, r) - first",
        (3,),
    ),
    Mutant("nearest backward: one row again and again", WRONG, BACKWARD, "(first + i) *", "first *", (3,)),
    Mutant("nearest backward: rows that are no whole vectors", SIXTEEN, BACKWARD, "|| axis.in % V != 0", "", (4, 5)),
    Mutant(
        "nearest backward: a scale beside the size taken for whole",
        WRONG,
        BACKWARD,
        "kTimes != 2 && i < axis.in",
        "i < 0",
        (3,),
    ),
    Mutant(
        "nearest backward: lanes of the warp that only help",
        "thread that is not masked",
        PLANES,
        "slot < of.folded && plane < of.planes",
        "slot < of.folded",
        (4, 5),
    ),
)

#: More planes than a block has room for, and rows that are no whole vectors but have room for them.
MUTANT_CASES = [
    case(op="nearest", h=2, w=3, H=4, W=17, fine_pad=3, c=60),
    case(op="nearest", h=7, w=9, H=23, W=17, fine_pad=3, n=2),
    case(op="nearest", h=21, w=40, H=9, W=16),
    case(op="nails", h=5, w=8, c=1),
    case(op="picked", h=5, w=8, c=1),
    case(op="backward", h=2, w=3, H=4, W=7, c=100),
    case(op="backward", h=5, w=7, H=11, W=19, n=2),
    case(op="backward", h=5, w=7, H=10, W=14, c=1, coarse_pad=1, fine_pad=2),
    case(op="backward", h=6, w=8, H=12, W=32, scale_w=4.1),
]

LIMITS = (
    Limit("upsample_nearest<.*, 1, rows>", 40),
    Limit("upsample_nearest<.*>", 64, at_least={"stg128": 1}),
    # Where the rows of a strip begin is an estimate by a division and a search from there.
    Limit("upsample_nearest_backward<.*, 1>", 64, calls=COLLECTIVES),
    Limit("upsample_nearest_backward<.*>", 64, at_least={"ldg128": 2, "stg128": 1}, calls=COLLECTIVES),
    Limit("upsample_nearest_backward_whole<.*>", 64, at_least={"ldg128": 2}, calls=COLLECTIVES),
    Limit(r"triton upsample_nearest \(.*\)", 64, at_least={"stg128": 1}),
    # Loops of both axes, and in sm_80 a subroutine of the search before them.
    Limit(r"triton upsample_nearest_backward \(.*\)", 128, at_least={"stg128": 1}, calls=("subroutine",)),
)

OPERATOR = Operator(
    name="upsample_nearest",
    cpu=("upsample_nearest.cpp",),
    cuda=(FORWARD, BACKWARD),
    cases={
        "forward": crossed("nearest", DTYPES, SHAPES, LAYOUTS),
        "backward": crossed("backward", DTYPES, SHAPES, LAYOUTS),
        "nails": nails("nails"),
        "picked": nails("picked"),
        "nothing": [case(op="nearest", n=0), case(op="backward", n=0), case(op="nails", n=0)],
    },
    traffic=TRAFFIC,
    mutants=MUTANTS,
    mutant_cases=MUTANT_CASES,
    limits=LIMITS,
)
