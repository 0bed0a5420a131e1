"""upsample_argmax on the ladder. The driver holds the CUDA and the CPU kernel against the definition in double."""

from __future__ import annotations

from tests.ladder.operator import COLLECTIVES, OF_DOUBLE, OF_FLOAT, Bytes, Limit, Moves, Mutant, Operator, Traffic, case

KERNEL = "upsample_argmax.cu"
DTYPES = ("float32", "float64", "bfloat16", "float16")
LABELS = ("uint8", "int16", "int32", "int64")
LAST = {"layout": "channels_last"}

#: One output, one class, several strips, blocks with several images, several tiles of columns, down, both at once.
SHAPES = (
    {"h": 1, "w": 1, "H": 1, "W": 1},
    {"h": 1, "w": 1, "H": 37, "W": 5, "c": 1},
    {"h": 5, "w": 8, "H": 11, "W": 32, "n": 3},
    {"h": 7, "w": 9, "H": 13, "W": 17, "align": True, "c": 19},
    {"h": 2, "w": 50, "H": 3, "W": 300, "c": 2},
    {"h": 21, "w": 40, "H": 9, "W": 16},
    {"h": 30, "w": 2, "H": 7, "W": 19, "n": 2},
)
LAYOUTS = ({}, {"pad": 3, "offset": 1, "gap": 2}, LAST, {"pad": 5, **LAST})


def cases() -> list[str]:
    """Every shape with every layout and every dtype with every layout, but not every triple."""
    chosen = [(dtype, SHAPES[3], layout) for dtype in DTYPES for layout in LAYOUTS]
    chosen += [(DTYPES[i % 4], shape, layout) for i, shape in enumerate(SHAPES) for layout in LAYOUTS]
    lines = [
        case(dtype=dtype, labels=LABELS[i % 4], score=i % 3 > 0, **{**shape, **layout})
        for i, (dtype, shape, layout) in enumerate(chosen)
    ]
    return list(dict.fromkeys(lines))


TIES = case(h=4, w=6, H=16, W=24, c=5, ties=True)
NAN = case(h=4, w=6, H=9, W=25, c=5, nan=True)


def traffic(shown: str, element: int, most: float, **options: object) -> Traffic:
    """Eightfold, 19 classes. most: reads of the coarse logits, as a multiple of the floor."""
    c, h, w, pixels = 19, 32, 32, 256 * 256
    line = case(c=c, h=h, w=w, H=8 * h, W=8 * w, score=False, **options)
    written = Bytes(pixels * (8 if options.get("labels") == "int64" else 1), 1.0)
    return Traffic(shown, line, {"upsample_argmax": Moves(Bytes(c * h * w * element, most), written)})


# This image is small: its strips have 4 rows, which lie between two coarse rows, and half a coarse row is their own: 4.
# Each output reads a left and a right input: 2. The 32 outputs of a warp have 4 inputs and read 5. A sector has 8 of
# float32, and every other warp needs two: 3 times its own; 16 of bfloat16, and every fourth warp needs two: 5 times.
# Channels last, each of the five is in a sector of its own: 10 times.
TRAFFIC = (
    traffic("float32, uint8", 4, 4 * 2 * 3.0, dtype="float32"),
    traffic("float32, int64", 4, 4 * 2 * 3.0, dtype="float32", labels="int64"),
    traffic("bfloat16, uint8", 2, 4 * 2 * 5.0, dtype="bfloat16"),
    traffic("float32, uint8, channels_last", 4, 4 * 2 * 10.0, dtype="float32", **LAST),
)

WRONG, UNMASKED = "wrong element", "thread that is not masked"
MUTANTS = (
    Mutant("argmax: the last of equals", WRONG, KERNEL, "!(logit <= best[r])", "!(logit < best[r])", (3,)),
    Mutant("argmax: NaN passed over", WRONG, KERNEL, "!(logit <= best[r])", "logit > best[r]", (3,)),
    Mutant("argmax: a number after NaN", WRONG, KERNEL, " && best[r] == best[r])", ")", (3,)),
    Mutant(
        "argmax: a tap of the next row",
        "shuffle from the wrong lane",
        KERNEL,
        "device::shuffle(static_cast<A>(tap.weight), r)",
        "device::shuffle(static_cast<A>(tap.weight), r + 1)",
        (3,),
    ),
    Mutant("argmax: threads beyond the row", UNMASKED, KERNEL, "  if (!place.active) return;\n", "", (4, 5)),
    Mutant(
        "argmax: rows beyond the strip",
        UNMASKED,
        KERNEL,
        "if (r < place.rows) store_label(",
        "store_label(",
        (4, 5),
    ),
    Mutant(
        "argmax: coarse rows swapped",
        WRONG,
        KERNEL,
        "blend(coarse.top[0], coarse.bottom[0], weight[r])",
        "blend(coarse.bottom[0], coarse.top[0], weight[r])",
        (3,),
    ),
    Mutant(
        "argmax: the first class left out of the sum",
        WRONG,
        KERNEL,
        "for (int c = 0; c < classes; ++c, plane += p.logits.stride_c)",
        "for (int c = 1; c < classes; ++c, plane += p.logits.stride_c)",
        (3,),
    ),
    Mutant(
        "argmax: the first image for all",
        WRONG,
        KERNEL,
        "+ place.image * p.logits.stride_n;",
        "+ 0 * p.logits.stride_n;",
        (3,),
    ),
)
MUTANT_CASES = [TIES, NAN, case(h=5, w=8, H=11, W=33, n=3), case(h=3, w=4, H=5, W=40, dtype="float64")]

LIMITS = (
    # Eight pixels of a thread: a maximum, a class, a tap and two coarse values each.
    Limit("upsample_argmax<double>", 168, calls=OF_DOUBLE),
    Limit("upsample_argmax<.*>", 96, calls=OF_FLOAT),
    Limit("triton upsample_argmax \\(.*float64.*\\)", 128, calls=(*COLLECTIVES, "subroutine", *OF_DOUBLE)),
    Limit("triton upsample_argmax \\(.*\\)", 96, calls=OF_FLOAT),
)

OPERATOR = Operator(
    name="upsample_argmax",
    cpu=("upsample_argmax.cpp",),
    cuda=(KERNEL,),
    cases={"all": cases(), "exact": [TIES, NAN, f"{TIES} layout=channels_last", f"{NAN} dtype=float64"]},
    large={"nothing": [case(n=0)]},
    traffic=TRAFFIC,
    mutants=MUTANTS,
    mutant_cases=MUTANT_CASES,
    limits=LIMITS,
)
