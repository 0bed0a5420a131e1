"""upsample_bilinear2d and upsample_cat on the ladder. The driver holds the kernels against the definition."""

from __future__ import annotations

from tests.ladder.operator import COLLECTIVES, Bytes, Limit, Moves, Mutant, Operator, Traffic, case, crossed

FORWARD, BACKWARD, BOTH = "upsample_bilinear.cu", "upsample_bilinear_backward.cu", "bilinear.cuh"
PLANES, MOVE = "planes.cuh", "move.cuh"
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAST = {"coarse_layout": "channels_last", "fine_layout": "channels_last"}

#: One output, sums of many, rows that fill vectors, rows that do not, several tiles, down, scales beside the sizes.
SHAPES = (
    {"h": 1, "w": 1, "H": 1, "W": 1},
    {"h": 1, "w": 1, "H": 37, "W": 32, "sums": 60},
    {"h": 5, "w": 8, "H": 11, "W": 32, "n": 2, "sums": 2},
    {"h": 7, "w": 9, "H": 13, "W": 17, "align": True},
    {"h": 3, "w": 150, "H": 5, "W": 1100, "c": 1, "sums": 3},
    {"h": 21, "w": 40, "H": 9, "W": 16, "sums": 2},
    {"h": 6, "w": 8, "H": 12, "W": 16, "scale_h": 2.05, "scale_w": 2.1},
    {"h": 6, "w": 8, "H": 12, "W": 16, "scale_w": 1, "sums": 2},
)
LAYOUTS = (
    {},
    {"fine_pad": 3, "fine_offset": 1},
    {"c": 16, **LAST},
    {"c": 5, **LAST},
    {"c": 16, "fine_pad": 8, **LAST},
    {"c": 3, "fine_layout": "channels_last"},
    {"c": 3, "coarse_layout": "channels_last", "fine_gap": 2},
)


def traffic(
    shown: str, op: str, dtype: str, scale: int, moves: tuple[float, float, float], **options: object
) -> Traffic:
    """moves: reads and writes, as multiples of the floor, and bank conflicts."""
    element = {"float32": 4, "bfloat16": 2}[dtype]
    c, h, w = (int(str(options.pop(key, otherwise))) for key, otherwise in (("c", 8), ("h", 64), ("w", 64)))
    height, width = int(str(options.pop("H", h * scale))), int(str(options.pop("W", w * scale)))
    coarse, fine = c * h * w * element, c * height * width * element
    line = case(op=op, dtype=dtype, c=c, h=h, w=w, H=height, W=width, **options)
    read, written, conflicts = moves
    if op == "backward":
        kernel = "upsample_bilinear_backward" if "coarse_layout" in options else "upsample_bilinear_backward_staged"
        return Traffic(shown, line, {kernel: Moves(Bytes(fine, read), Bytes(coarse, written), conflicts)})
    kernels = {"upsample_bilinear": Moves(Bytes(coarse, read), Bytes(fine, written), conflicts)}
    if op == "cat":
        skip = int(str(options["skip"])) * height * width * element
        kernels["upsample_cat_skip"] = Moves(Bytes(skip), Bytes(skip))
    return Traffic(shown, line, kernels)


# These images are small: their strips have 4 rows, the least, and what two strips share is read twice.
TRAFFIC = (
    # Twofold, 4 output rows lie between 4 coarse ones, of which 2 are their own. V outputs side by side take V / 2 + 2
    # loads, V / 2 inputs apart: each input is asked for as often.
    traffic("float32, x2", "forward", "float32", 2, (2 * 4, 1.0, 0.0)),
    traffic("bfloat16, x2", "forward", "bfloat16", 2, (2 * 6, 1.0, 0.0)),
    # Fourfold: 3 coarse rows for 1, 3 loads for 4 outputs.
    traffic("float32, x4", "forward", "float32", 4, (3 * 3, 1.0, 0.0), h=32, w=32),
    # Channels last, an input is the left one of two outputs and the right one of two, but for those of one warp.
    traffic("float32, x2, channels_last", "forward", "float32", 2, (2 * 4, 1.0, 0.0), c=64, h=32, w=32, **LAST),
    traffic("bfloat16, x2, channels_last", "forward", "bfloat16", 2, (2 * 3, 1.0, 0.0), c=64, h=32, w=32, **LAST),
    # Rows that begin anywhere cost a sector a request; each input is asked for twice.
    traffic("float32, 64 to 127", "forward", "float32", 2, (2 * 2 * 1.25, 1.26, 0.0), H=127, W=127),
    # Of 10 fine rows, 8 are a strip's own. Lanes 2 or 4 apart meet in a bank at the seam of the padding.
    traffic("float32, x2", "backward", "float32", 2, (1.25, 1.0, 0.6)),
    traffic("bfloat16, x2", "backward", "bfloat16", 2, (1.25, 1.0, 0.6)),
    traffic("float32, x4", "backward", "float32", 4, (1.25, 1.0, 0.7), h=32, w=32),
    traffic("float32, 64 to 127", "backward", "float32", 2, (1.25 * 1.26, 1.0, 0.6), H=127, W=127),
    # Two neighbouring pixels each load what both read.
    traffic("bfloat16, x2, channels_last", "backward", "bfloat16", 2, (2 * 1.25, 1.0, 0.0), c=64, h=32, w=32, **LAST),
    traffic("bfloat16, x2", "cat", "bfloat16", 2, (2 * 6, 1.0, 0.0), skip=8),
    traffic(
        "float32, x2, channels_last",
        "cat",
        "float32",
        2,
        (2 * 4, 1.0, 0.0),
        c=64,
        h=32,
        w=32,
        skip=16,
        skip_layout="channels_last",
        **LAST,
    ),
)

WRONG, PAST, SIXTEEN = "wrong element", "store one past the row", "16-byte access that ignores tail or alignment"
MUTANTS = (
    Mutant(
        "bilinear: rows of the strip before", WRONG, BOTH, "if (low == held) return;", "if (held >= 0) return;", (3,)
    ),
    Mutant(
        "bilinear: row taken over from two above", WRONG, BOTH, "low == held + 1", "low >= held + 1 && held >= 0", (3,)
    ),
    Mutant("bilinear: input taken over from two before", WRONG, BOTH, "low[v] == low[v - 1] + 1 ?", "true ?", (3,)),
    Mutant("bilinear: one past the coarse row", "read one past the row", BOTH, "(x < last ? x : last)", "x", (4, 5)),
    Mutant(
        "bilinear: weights swapped",
        WRONG,
        BOTH,
        "(A(1) - weight) * low + weight * high",
        "weight * low + (A(1) - weight) * high",
        (3,),
    ),
    Mutant(
        "bilinear: a whole vector at the row's end",
        SIXTEEN,
        FORWARD,
        "kAcross || first + V <= p.output.width",
        "true",
        (3, 4, 5),
    ),
    Mutant(
        "bilinear: one past the row's end",
        PAST,
        FORWARD,
        "if (first + v < p.output.width)",
        "if (first + v <= p.output.width)",
        (3, 4, 5),
    ),
    Mutant(
        "bilinear: a tap of the next row",
        "shuffle from the wrong lane",
        FORWARD,
        "device::shuffle(own_low, r)",
        "device::shuffle(own_low, (r + 1) % 32)",
        (3,),
    ),
    Mutant(
        "bilinear: threads beyond the planes",
        "thread that is not masked",
        PLANES,
        "slot < of.folded && plane < of.planes",
        "slot < of.folded",
        (4, 5),
    ),
    Mutant(
        "bilinear: rows beyond the image",
        "thread that is not masked",
        PLANES,
        "of.rows - row < of.strip ? of.rows - row : of.strip",
        "of.strip",
        (3, 4, 5),
    ),
    Mutant(
        "bilinear: strides of rows for vectors ignored",
        SIXTEEN,
        PLANES,
        "|| !whole(planes.height, planes.stride_h)",
        "",
        (5,),
    ),
    Mutant(
        "bilinear backward: sums read at once",
        "missing barrier before reading",
        BACKWARD,
        "    SYNC_THREADS();\n    if (!active) return;",
        "    if (!active) return;",
        (3, 4),
    ),
    Mutant(
        "bilinear backward: one buffer",
        "missing barrier before rewriting it",
        BACKWARD,
        "(r % 2) * at.buffer",
        "0 * at.buffer",
        (4,),
    ),
    Mutant("bilinear backward: half a window", WRONG, BACKWARD, "end = firsts[j + 2];", "end = firsts[j + 1];", (3,)),
    Mutant(
        "bilinear backward: last row without its share",
        WRONG,
        BACKWARD,
        "rest = is_last ? A(1) : A(1) - weight",
        "rest = is_last ? A(1) - weight : A(1) - weight",
        (3,),
    ),
    Mutant(
        "bilinear backward: last column without its share",
        WRONG,
        BACKWARD,
        "(is_last ? A(1) : A(1) - weights[padded(x)])",
        "(A(1) - (is_last ? weights[padded(x)] : weights[padded(x)]))",
        (3,),
    ),
    Mutant(
        "bilinear backward: sums of the row before kept", WRONG, BACKWARD, "      next[v] = 0;\n    }", "    }", (3,)
    ),
    Mutant(
        "bilinear backward: planes share a row of sums",
        "threads share what is each one's own",
        BACKWARD,
        "place.slot * at.slot",
        "0 * at.slot",
        (3, 4),
    ),
    Mutant(
        "bilinear backward: one past the fine row",
        "read one past the row",
        BACKWARD,
        "active && x < rest ?",
        "active && x <= rest ?",
        (4, 5),
    ),
    Mutant(
        "cat: vectors of any alignment",
        SIXTEEN,
        MOVE,
        "side_by_side &= source[0] % V == 0;",
        "side_by_side = true;",
        (3,),
    ),
    Mutant("cat: the row before", WRONG, MOVE, "if (row != held) {", "if (held < 0) {", (3,)),
)

#: More planes than a block has room for.
MANY = [case(op=op, h=2, w=3, H=4, W=17, fine_pad=3, c=60, sums=2) for op in ("forward", "backward")]
MUTANT_CASES = [
    *MANY,
    case(op="forward", h=7, w=9, H=23, W=17, fine_pad=3, n=2),
    case(op="forward", h=21, w=40, H=9, W=16),
    case(op="forward", h=7, w=9, H=13, W=17, fine_pad=2, c=1),
    case(op="backward", h=5, w=8, H=11, W=32, n=2, sums=2),
    case(op="backward", h=7, w=140, H=13, W=301, c=1, sums=2),
    case(op="cat", h=5, w=8, H=10, W=16, c=4, skip=3, skip_pad=1),
    case(op="cat", h=5, w=8, H=10, W=16, c=4, skip=3),
]

_HALF = "b?float16"
LIMITS = (
    # V is of 16 bytes. Planar, a lane loads inputs one by one: they begin anywhere.
    Limit("upsample_bilinear<.*, 1, rows>", 48),
    Limit(f"upsample_bilinear<{_HALF}, 8, planar>", 128, at_least={"stg128": 1}),
    Limit("upsample_bilinear<(float|double), [24], planar>", 80, at_least={"stg128": 1}),
    Limit("upsample_bilinear<.*, [248], rows>", 64, at_least={"ldg128": 4, "stg128": 1}),
    # Where the rows of a strip begin is an estimate in double and, once a strip, a division.
    Limit("upsample_bilinear_backward<.*, 1>", 168, calls=("div_rn_f64_full", *COLLECTIVES)),
    Limit(
        "upsample_bilinear_backward<.*, [248]>",
        128,
        at_least={"ldg128": 2, "stg128": 1},
        calls=("div_rn_f64_full", *COLLECTIVES),
    ),
    # "planar" and "rows" stand for false and true: whether rows are aligned.
    Limit("upsample_bilinear_backward_staged<.*, planar>", 128, calls=("div_rn_f64_full", *COLLECTIVES)),
    Limit(
        "upsample_bilinear_backward_staged<.*, rows>",
        96,
        at_least={"ldg128": 1},
        calls=("div_rn_f64_full", *COLLECTIVES),
    ),
    Limit(r"triton upsample_bilinear_forward .*", 112, at_least={"stg128": 1}, calls=("subroutine",)),
    Limit(r"triton upsample_bilinear_backward .*", 240, calls=("subroutine",)),
    Limit(r"triton upsample_cat_copy .*", 40, at_least={"ldg128": 1, "stg128": 1}, calls=("subroutine",)),
    Limit(r"upsample_cat_skip<.*, 1, rows>", 40),
    Limit(r"upsample_cat_skip<.*>", 64, at_least={"ldg128": 1, "stg128": 1}),
)

CAT = [
    case(op="cat", dtype=dtype, h=5, w=8, H=10, W=16, n=2, **{"c": 8, "skip": 5, **layout})
    for dtype in DTYPES
    for layout in (
        {"fine_gap": 3},
        {"skip_pad": 1, "fine_offset": 1},
        {"skip": 16, "fine_pad": 8, "skip_layout": "channels_last", **LAST},
        {"skip": 3, "skip_layout": "channels_last"},
    )
]

OPERATOR = Operator(
    name="upsample_bilinear",
    cpu=("upsample_bilinear.cpp",),
    cuda=(FORWARD, BACKWARD, "upsample_cat.cu"),
    cases={
        "forward": crossed("forward", DTYPES, SHAPES, LAYOUTS),
        "backward": crossed("backward", DTYPES, SHAPES, LAYOUTS),
        "cat": CAT,
        "many": MANY,
        "nothing": [case(op="cat", n=0)],
    },
    traffic=TRAFFIC,
    mutants=MUTANTS,
    mutant_cases=MUTANT_CASES,
    limits=LIMITS,
)
