"""Planted bugs of dilated_conv."""

from __future__ import annotations

from tests.ladder.operator import Mutant, case
from tests.ladder.ops.dilated_conv_cases import LAST

BOTH, FORWARD, GEMM, WEIGHT = (
    "dilated_conv.cuh",
    "dilated_conv.cu",
    "dilated_conv_gemm.cu",
    "dilated_conv_grad_weight.cu",
)
WRONG, BARRIER, AFTER_WAIT = "wrong element", "missing barrier", "no barrier after the wait"
SHORT, PAST, SIXTEEN = (
    "cp.async wait one group short",
    "store one past M",
    "16-byte access that ignores tail or alignment",
)

MUTANT_CASES = [
    case(dtype="bfloat16", c=40, out=16, h=6, w=7, residual=True, residual_layout="channels_last", scale=True, **LAST),
    case(dtype="float32", c=12, out=8, h=6, w=7, fast=True),
    case(dtype="float32", c=5, out=19, h=9, w=9, stride=2, bias=True, **LAST),
    case(dtype="float16", c=24, out=8, h=4, w=5, groups=2, **LAST),
    case(dtype="bfloat16", c=16, out=8, h=4, w=5, out_layout="channels_last", in_layout="channels_last", in_offset=1),
    case(dtype="float32", c=4, out=4, h=4, w=4, groups=4, padding=0, **LAST),
    case(op="grad_input", dtype="bfloat16", c=8, out=8, h=9, w=7, stride=2, kernel=5, padding=2, **LAST),
    case(op="grad_input", dtype="float32", c=2, out=2, groups=2, h=7, w=5, stride=2),
    case(op="grad_weight", dtype="bfloat16", c=16, out=8, n=2, h=9, w=13, **LAST),
    case(op="grad_weight", dtype="float32", c=5, out=6, h=17, w=17, fast=True),
    case(op="grad_weight", dtype="float32", c=8, out=8, h=6, w=7, **LAST),
    case(op="grad_weight", dtype="float32", c=3, out=3, groups=3, h=6, w=7),
]

WAIT = "device::cp_async_wait<kStages - 2>();\n    SYNC_THREADS();"
MUTANTS = (
    Mutant("conv: a group too few", SHORT, GEMM, "wait<kStages - 2>", "wait<kStages - 1>", (3, 4)),
    Mutant("conv: stages not yet there", AFTER_WAIT, GEMM, WAIT, WAIT.partition("\n")[0], (4,)),
    Mutant(
        "conv: results over the last stage",
        "no barrier at the end of the k loop",
        GEMM,
        "SYNC_THREADS();  // the last stage has been read",
        "",
        (4,),
    ),
    Mutant(
        "conv: results not yet there",
        BARRIER,
        GEMM,
        "put<false>(sums, stage);\n  SYNC_THREADS();",
        "put<false>(sums, stage);",
        (4,),
    ),
    Mutant(
        "conv: columns from the rows",
        "B fragments loaded with A's addresses",
        GEMM,
        "Product::add(sums, rows, rows + kRows * kRowBytes);",
        "Product::add(sums, rows, rows);",
        (3,),
    ),
    Mutant("conv: a pixel too many", PAST, GEMM, "/ lanes; r < part.rows;", "/ lanes; r <= part.rows;", (4, 5)),
    Mutant(
        "conv: a channel too many",
        "store one past N",
        GEMM,
        "if (c >= columns) return;",
        "if (c > columns) return;",
        (4,),
    ),
    Mutant(
        "conv: one past the source row",
        "read one past the row",
        GEMM,
        "< static_cast<unsigned>(p.horizontal.source);",
        "<= static_cast<unsigned>(p.horizontal.source);",
        (3, 4),
    ),
    Mutant(
        "conv: channels past the group",
        "read one past the row",
        GEMM,
        "there && gathered.channel + v < p.source_channels",
        "there",
        (4, 5),
    ),
    Mutant(
        "conv: pixels that are no whole vectors",
        SIXTEEN,
        GEMM,
        "g.wide = wide(p.destination) && (!p.epilogue.residual.data || wide(p.epilogue.residual));",
        "g.wide = wide(p.destination) || true;",
        (3, 4, 5),
    ),
    Mutant(
        "conv: groups that are no whole chunks",
        SIXTEEN,
        GEMM,
        "p.source_channels % V != 0 || ",
        "p.source_channels % V > V || ",
        (3, 4, 5),
    ),
    Mutant(
        "conv: sources at any address",
        SIXTEEN,
        GEMM,
        "p.source_channels % V != 0 || !vectors_fit(p.source, sizeof(T), false)",
        "p.source_channels % V != 0 || is_planar(p.source)",
        (3, 4, 5),
    ),
    Mutant("conv: taps in the wrong order", WRONG, GEMM, "per_tap = -(axis", "per_tap = (axis", (3,)),
    Mutant("conv: pixels of another phase", WRONG, GEMM, "at % axis.stride != 0", "(at + 1) % axis.stride != 0", (3,)),
    Mutant(
        "conv: scaled after the residual",
        WRONG,
        BOTH,
        "channel.add + residual,",
        "channel.add + residual * channel.scale,",
        (3,),
    ),
    Mutant(
        "conv: a source between two",
        WRONG,
        FORWARD,
        "== static_cast<unsigned>(at) ? static",
        "<= static_cast<unsigned>(at) ? static",
        (3,),
    ),
    Mutant(
        "conv: vectors of a pixel of another layout",
        SIXTEEN,
        FORWARD,
        "depthwise && vectors_fit(p.destination, sizeof(T), false) && vectors_fit(p.source, sizeof(T), false)",
        "depthwise || true",
        (3, 4, 5),
    ),
    Mutant("conv, weight: a group too few", SHORT, WEIGHT, "wait<kStages - 2>", "wait<kStages - 1>", (3, 4)),
    Mutant("conv, weight: stages not yet there", AFTER_WAIT, WEIGHT, WAIT, WAIT.partition("\n")[0], (4,)),
    Mutant(
        "conv, weight: columns from the rows",
        "B fragments loaded with A's addresses",
        WEIGHT,
        "Product::add(sums, rows, rows + At::kRowsBytes);",
        "Product::add(sums, rows, rows);",
        (3,),
    ),
    Mutant(
        "conv, weight: the row is not left",
        WRONG,
        WEIGHT,
        "if (column >= width) column -= width, ++row;",
        "if (column >= width) column -= width;",
        (3,),
    ),
    Mutant(
        "conv, weight: pixels past the last",
        "read one past the row",
        WEIGHT,
        "const bool there = left > 0;",
        "const bool there = left > -At::kPixels;",
        (4, 5),
    ),
    Mutant("conv, weight: a part is left out", WRONG, WEIGHT, "part < cut.parts;", "part < cut.parts - 1;", (3,)),
    Mutant(
        "conv, weight: sums not yet there",
        BARRIER,
        WEIGHT,
        "    SYNC_THREADS();\n    if (threadIdx.x < half)",
        "    if (threadIdx.x < half)",
        (4,),
    ),
)
