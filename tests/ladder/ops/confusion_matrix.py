"""confusion_matrix on the ladder. The driver holds the CUDA and the CPU kernels against counting pixel by pixel."""

from __future__ import annotations

from tests.ladder.operator import COLLECTIVES, INDEX, Bytes, Limit, Moves, Mutant, Operator, Traffic, case

KERNEL = "confusion_matrix.cu"
DTYPES = ("float32", "float64", "bfloat16", "float16")
LABELS = ("uint8", "int16", "int32", "int64")
LAST = {"layout": "channels_last"}

#: One pixel, one class, tiles that are not whole, several images and chunks, more classes than are loaded at once.
SHAPES = (
    {"h": 1, "w": 1},
    {"h": 3, "w": 16, "c": 1, "n": 2},
    {"h": 8, "w": 64, "c": 19},
    {"h": 7, "w": 31, "n": 3, "c": 8},
    {"h": 47, "w": 48, "c": 3, "bad": 3},
)
LAYOUTS = ({}, {"offset": 1, "gap": 2}, LAST, {"pad": 1, **LAST})
#: Counted in the results themselves, as the matrix is too large for shared memory.
LARGE = {"c": 91, "h": 5, "w": 26}


def cases() -> list[str]:
    """Every dtype with every layout, every shape with every layout, and label maps of every pair of dtypes."""
    chosen = [(dtype, SHAPES[2], layout) for dtype in DTYPES for layout in LAYOUTS]
    chosen += [(DTYPES[i % 4], shape, layout) for i, shape in enumerate(SHAPES) for layout in LAYOUTS]
    lines = [
        case(dtype=dtype, target=LABELS[i % 4], ignore=i % 3 > 0, ties=i % 2, **{**shape, **layout})
        for i, (dtype, shape, layout) in enumerate(chosen)
    ]
    lines += [
        case(dtype=dtype, target=LABELS[(i + j) % 4], h=11, w=33 + j, bad=j, bad_predictions=i)
        for i, dtype in enumerate(LABELS)
        for j in range(2)
    ]
    return list(dict.fromkeys(lines))


REGIONS = case(h=9, w=40, same=True)
MANY = [
    case(**LARGE),
    case(dtype="bfloat16", **LARGE, **LAST),
    case(dtype="int16", target="uint8", **LARGE),
    case(dtype="int64", **LARGE, same=True, ignore=False),
    case(dtype="float32", c=400, h=2, w=40, **LAST),  # a tile too large to be staged
]

BYTES = {"float32": 4, "bfloat16": 2, "uint8": 1, "int64": 8}
EVEN, ODD = {"h": 64, "w": 256}, {"h": 67, "w": 251, "n": 2, "offset": 1}
LOGITS, CLASSES = "confusion_matrix_logits", "confusion_matrix_classes"


def traffic(
    dtype: str,
    target: str,
    shape: dict[str, int],
    most: float = 1.0,
    conflicts: float = 0.0,
    c: int = 19,
    **layout: object,
) -> Traffic:
    """Predictions and labels are read once. Atomics, which add up the blocks' counts, are not counted.

    most: times that.
    """
    of_map = dtype in LABELS
    images, pixels = shape.get("n", 1), shape["h"] * shape["w"]
    floor = images * pixels * (BYTES[dtype] * (1 if of_map else c) + BYTES[target])
    records = 96 * images * -(-pixels // 2048) * (1 + of_map)
    moves = Moves(Bytes(floor, most), Bytes(0, 1.0, records), conflicts)
    combine = Moves(Bytes(0, 1.0, records), Bytes(0, 1.0, 192))
    name = "map" if of_map else "channels_last" if layout else "planar"
    return Traffic(
        f"{dtype}, {target}, {c} classes, {images} x {pixels}, {name}" + (", anywhere" if "offset" in shape else ""),
        case(dtype=dtype, target=target, c=c, ignore=False, **shape, **layout),
        {CLASSES if of_map else LOGITS: moves, "confusion_matrix_combine": combine},
    )


# Conflicts: 16-bit logits have 8 pixels a lane, whose labels are 32 bytes; two rows of an odd number of 16-bit logits
# share a bank.
TRAFFIC = (
    traffic("float32", "int64", EVEN),
    traffic("bfloat16", "uint8", EVEN, 1.0, 0.5),
    traffic("float32", "int64", EVEN, **LAST),
    traffic("bfloat16", "int64", EVEN, 1.0, 1.0, **LAST),
    traffic("bfloat16", "uint8", EVEN, 1.0, 1.0, c=150, **LAST),
    traffic("float32", "int64", EVEN, c=150),
    traffic("int64", "int64", EVEN),
    traffic("uint8", "uint8", EVEN),
    # Tiles of channels last that begin anywhere have a sector more than they fill, and so have their labels.
    traffic("float32", "int64", ODD, 1.03, 0.01, **LAST),
    traffic("bfloat16", "uint8", ODD, 1.05, 1.0, **LAST),
    # Of planes, what a warp reads at once lies in a sector more than it fills.
    traffic("float32", "int64", ODD, 1.25),
    traffic("bfloat16", "uint8", ODD, 1.5, 0.5),
)

WRONG, UNMASKED, BARRIER, RACE = "wrong element", "thread that is not masked", "missing barrier", "missing atomic"
MUTANTS = (
    Mutant("confusion: the last of equals", WRONG, KERNEL, "!(x <= best[v])", "!(x < best[v])", (3,)),
    Mutant("confusion: NaN passed over", WRONG, KERNEL, "!(x <= best[v])", "x > best[v]", (3,)),
    Mutant(
        "confusion: a number after NaN",
        WRONG,
        KERNEL,
        "!(x <= best[v]) && best[v] == best[v];",
        "!(x <= best[v]);",
        (3,),
    ),
    Mutant(
        "confusion: class of the group", WRONG, KERNEL, "better ? c + k : winner[v]", "better ? k : winner[v]", (3,)
    ),
    Mutant(
        "confusion: labels beyond the tile", UNMASKED, KERNEL, "at + v * step < end ?", "at + v * step <= end ?", (4, 5)
    ),
    Mutant(
        "confusion: pixels beyond the tile",
        UNMASKED,
        KERNEL,
        "from < rest ? known_label(p, position + from, raw[v], bad) : -1",
        "known_label(p, position + from, raw[v], bad)",
        (3,),
    ),
    Mutant(
        "confusion: counts not cleared by all before the first adds",
        BARRIER,
        KERNEL,
        "      shared[i] = 0;\n    SYNC_THREADS();",
        "      shared[i] = 0;",
        (4,),
    ),
    Mutant(
        "confusion: counts flushed before all have added",
        BARRIER,
        KERNEL,
        "flush() const {\n    SYNC_THREADS();",
        "flush() const {",
        (4,),
    ),
    Mutant(
        "confusion: labels read before they are handed over",
        BARRIER,
        KERNEL,
        "= label[v];\n      SYNC_WARP();",
        "= label[v];",
        (4,),
    ),
    Mutant(
        "confusion: labels handed over before the last were read",
        BARRIER,
        KERNEL,
        "    if constexpr (V > 1) {\n      SYNC_WARP();",
        "    if constexpr (V > 1) {",
        (4,),
    ),
    Mutant(
        "confusion: a tile read before all of it has come",
        BARRIER,
        KERNEL,
        "    if (kRows && reading.staged) SYNC_WARP();\n",
        "",
        (4,),
    ),
    Mutant(
        "confusion: a tile staged before the last was read",
        BARRIER,
        KERNEL,
        "      SYNC_WARP();  // the tile before has been read\n",
        "",
        (4,),
    ),
    Mutant(
        "confusion: counts of a block without an atomic",
        RACE,
        KERNEL,
        "device::atomic_add(shared + label * static_cast<int>(classes) + predicted, 1u)",
        "shared[label * static_cast<int>(classes) + predicted] += 1",
        (4,),
    ),
    Mutant(
        "confusion: counts of the grid without an atomic",
        RACE,
        KERNEL,
        "device::atomic_add(results + i, static_cast<unsigned long long>(shared[i]))",
        "results[i] += shared[i]",
        (4,),
    ),
    Mutant(
        "confusion: a region counted by every lane",
        WRONG,
        KERNEL,
        "cell >= 0 && (!same || lane_id() == 0)",
        "cell >= 0",
        (3,),
    ),
    Mutant(
        "confusion: the first image for all", WRONG, KERNEL, "+ chunk.image * p.stride_n;", "+ 0 * p.stride_n;", (3,)
    ),
    Mutant("confusion: ignored labels are bad", WRONG, KERNEL, "p.has_ignore_index && label", "false && label", (3,)),
    Mutant(
        "confusion: bad predictions counted",
        "index that is not checked",
        KERNEL,
        "      if (known >= 0 && !(",
        "      if (false && !(",
        (3,),
    ),
    Mutant(
        "confusion: the second warp's record lost",
        "partial result left out",
        KERNEL,
        "for (int w = 1; w < static_cast<int>(blockDim.x)",
        "for (int w = 2; w < static_cast<int>(blockDim.x)",
        (3,),
    ),
)
MUTANT_CASES = [
    case(h=17, w=128, c=19, n=2, ties=True, bad=20),
    case(h=3, w=37, c=3, ties=True),
    case(h=5, w=128, c=12, dtype="float16", **LAST),
    case(h=33, w=64, dtype="int64", bad=2, bad_predictions=3),
    case(**LARGE, dtype="int64", same=True, ignore=False),
    case(h=40, w=64, dtype="bfloat16"),
]

# Two blocks of 256 threads on a multiprocessor (128 registers), three for label maps; of planes, eight classes are
# loaded at once. The chunk of a block needs divisions of 64 bits.
LIMITS = (
    Limit("confusion_matrix_logits<.*, planar>", 128, at_least={"ldg128": 8}, calls=(*INDEX, *COLLECTIVES)),
    Limit("confusion_matrix_logits<.*>", 128, at_least={"ldgsts": 1}, calls=(*INDEX, *COLLECTIVES)),
    Limit("confusion_matrix_.*", 80, calls=(*INDEX, *COLLECTIVES)),
    Limit("triton confusion_matrix_.* \\(.*\\)", 128, calls=COLLECTIVES),
)

OPERATOR = Operator(
    name="confusion_matrix",
    cpu=("confusion_matrix.cpp",),
    cuda=(KERNEL,),
    cases={"all": cases(), "many classes": MANY, "regions": [REGIONS, f"{REGIONS} dtype=uint8"]},
    large={"chunks": [case(h=70, w=90, c=2, n=2), case(dtype="uint8", h=90, w=101)], "nothing": [case(n=0)]},
    traffic=TRAFFIC,
    mutants=MUTANTS,
    mutant_cases=MUTANT_CASES,
    limits=LIMITS,
)
