"""Bugs to be planted in the CUDA kernels of dice_ce_loss, and cases that catch them."""

from __future__ import annotations

from tests.ladder.operator import Mutant, case

FORWARD, BACKWARD = "dice_ce_loss.cu", "dice_ce_loss_backward.cu"
TILE, ROWS, SWEEP = "dice_ce_loss_tile.cuh", "dice_ce_loss_rows.cuh", "dice_ce_loss_sweep.cuh"
REDUCE, GRADIENT = "reduce.cuh", "dice_ce_loss_gradient.cuh"
UNREAD, REWRITTEN = "missing barrier before reading a reduction buffer", "missing barrier before rewriting it"
EARLY, PAST = "shuffle loop that ends early", "store one past the row"
SIXTEEN, PIPELINE = "16-byte access that ignores tail or alignment", "cp.async pipeline without wait or barrier"
PLAIN_ADD, WRONG = "plain increment instead of atomicAdd", "wrong element"

MUTANTS = (
    Mutant(
        "block sum read at once",
        UNREAD,
        REDUCE,
        "scratch[warp] = v;\n  SYNC_THREADS();\n",
        "scratch[warp] = v;\n",
        (3, 4),
    ),
    Mutant(
        "block sum's buffer used again",
        REWRITTEN,
        REDUCE,
        "v = warp_sum(v);\n  SYNC_THREADS();\n",
        "v = warp_sum(v);\n",
        (4,),
    ),
    Mutant(
        "tables read at once",
        UNREAD,
        BACKWARD,
        "RowLayout(classes, sizeof(T))};\n  SYNC_THREADS();\n",
        "RowLayout(classes, sizeof(T))};\n",
        (4,),
    ),
    Mutant(
        "swept labels read at once",
        UNREAD,
        BACKWARD,
        "SYNC_THREADS();\n    Pixels<A, V> pixels;",
        "Pixels<A, V> pixels;",
        (3, 4),
    ),
    Mutant(
        "maxima of warps read at once",
        UNREAD,
        SWEEP,
        "all_extra[at] = (*extra)[v];\n    }\n    SYNC_THREADS();\n",
        "all_extra[at] = (*extra)[v];\n    }\n",
        (3, 4),
    ),
    Mutant(
        "argmax of warps read at once",
        UNREAD,
        SWEEP,
        "SYNC_THREADS();  // at_label, best and winner are there, and the maxima have been read",
        "",
        (4,),
    ),
    Mutant(
        "warp's labels read at once",
        UNREAD,
        TILE,
        "labels, values, bad);\n    SYNC_WARP();\n    take(",
        "labels, values, bad);\n    take(",
        (3, 4),
    ),
    Mutant("warp's labels written early", REWRITTEN, TILE, "SYNC_WARP();  // the tile before has been read", "", (4,)),
    Mutant("warp sum ends early", EARLY, REDUCE, "mask > 0; mask /= 2) v +=", "mask > 1; mask /= 2) v +=", (3,)),
    Mutant(
        "warp sums end early", EARLY, REDUCE, "rest > 0; rest /= 2) total +=", "rest > 1; rest /= 2) total +=", (3,)
    ),
    Mutant(
        "bad labels' merge ends early",
        EARLY,
        REDUCE,
        "mask > 0; mask /= 2)\n    bad = merge",
        "mask > 1; mask /= 2)\n    bad = merge",
        (3,),
    ),
    Mutant("plane's tail", PAST, TILE, "if (at < count) tile[k", "if (at <= count) tile[k", (3, 4, 5)),
    Mutant(
        "row's tail",
        PAST,
        ROWS,
        "if (k < classes && lane_id() < count) own[k]",
        "if (k <= classes && lane_id() < count) own[k]",
        (3, 4),
    ),
    Mutant(
        "chunk's tail",
        PAST,
        TILE,
        "count = static_cast<int>(rest < plan.chunk ? rest : plan.chunk);",
        "count = static_cast<int>(rest > 0 ? plan.chunk : rest);",
        (3, 4, 5),
    ),
    Mutant("any base", SIXTEEN, TILE, "reinterpret_cast<uintptr_t>(data) % 16 != 0", "data == nullptr", (3, 4)),
    Mutant("any number of pixels", SIXTEEN, TILE, "whole(stride_c) && whole(in.pixels)", "whole(stride_c)", (3, 4, 5)),
    Mutant("store of a whole tile", SIXTEEN, TILE, "if (lane_id() * V < count) x[k].store", "x[k].store", (3, 4, 5)),
    Mutant("load of a whole tile", SIXTEEN, TILE, "inside = lane_id() * V < count", "inside = true", (4, 5)),
    Mutant("pair's pieces beyond the plane", SIXTEEN, TILE, "&& pixel < count", "&& pixel <= count", (3, 4, 5)),
    Mutant("pair's piece of no class", SIXTEEN, TILE, "c < classes && pixel", "c <= classes && pixel", (4, 5)),
    Mutant("the other half is traded", WRONG, TILE, "odd ? first : second, 1", "odd ? second : first, 1", (3,)),
    Mutant("traded with another lane", WRONG, TILE, "odd ? first : second, 1", "odd ? first : second, 2", (3,)),
    Mutant("half of the wrong class is kept", WRONG, TILE, "second = odd ? second : theirs", "second = theirs", (3,)),
    Mutant("no wait for cp.async", PIPELINE, ROWS, "device::cp_async_wait<0>();", "", (3,)),
    Mutant("wait one group short", PIPELINE, ROWS, "device::cp_async_wait<0>();", "device::cp_async_wait<1>();", (3,)),
    Mutant(
        "no barrier after the wait",
        PIPELINE,
        ROWS,
        "stage(tile, shared, layout, lane_id(), device::kWarp);\n    SYNC_WARP();\n",
        "stage(tile, shared, layout, lane_id(), device::kWarp);\n",
        (3, 4),
    ),
    Mutant(
        "no barrier before the gradient's rows leave",
        PIPELINE,
        ROWS,
        "SYNC_WARP();\n    unstage(",
        "unstage(",
        (3, 4),
    ),
    Mutant(
        "no barrier before the swept gradient's rows leave",
        PIPELINE,
        BACKWARD,
        "SYNC_THREADS();  // all groups are there",
        "",
        (3, 4),
    ),
    Mutant(
        "confusion counted in shared memory",
        PLAIN_ADD,
        FORWARD,
        "device::atomic_add(counts + label[v] * classes + winner[v], 1u)",
        "++counts[label[v] * classes + winner[v]]",
        (4,),
    ),
    Mutant(
        "confusion counted in global memory",
        PLAIN_ADD,
        FORWARD,
        "device::atomic_add(reinterpret_cast<unsigned long long*>(p.confusion) + i, confusion[i])",
        "p.confusion[i] += confusion[i]",
        (4,),
    ),
    Mutant("last of equals", WRONG, SWEEP, "(tie && other < chosen)", "(tie && other > chosen)", (3,)),
    Mutant(
        "ignored logits stay",
        WRONG,
        TILE,
        "if (label[v] < 0) x[k].set(v, 0);",
        "if (label[v] < -1) x[k].set(v, 0);",
        (3,),
    ),
    Mutant(
        "ignored pixels have a gradient", WRONG, GRADIENT, "return label < 0 ? A(0) : result;", "return result;", (3,)
    ),
    Mutant(
        "derivative of another sum",
        WRONG,
        GRADIENT,
        "device::load(grad + classes + c)",
        "device::load(grad + c)",
        (3,),
    ),
    Mutant("weight of another class", WRONG, FORWARD, "* class_weight[pixels.label[v]]", "* class_weight[0]", (3,)),
    Mutant("gradient's weight of another class", WRONG, GRADIENT, "tables.weight[known]", "tables.weight[0]", (3,)),
    Mutant(
        "more shared memory than allowed",
        "launch that the device refuses",
        FORWARD,
        "OPT_IN_SHARED((dice_ce_loss_forward_kernel<T, K, kRows>), shared.bytes)",
        "cudaSuccess",
        (3, 4),
    ),
)

#: Small, and each kernel with several tiles a warp, tails, gaps and odd bases.
CASES = (
    case(c=5, s=1060, n=2, layout="planar", weight=1, ignore=0.2, squared=1, confusion=1, bad=29),
    case(c=5, s=1061, layout="planar", pad=3, pixel_weight=1, ignore=0.1),
    case(c=5, s=92, layout="planar", offset=1, map=1, smoothing=0.1, weight=1),
    case(c=5, s=31, layout="planar", pad=1),
    case(dtype="bfloat16", c=9, s=1064, layout="planar", n=2, weight=1, ignore=0.2),
    case(dtype="float16", c=10, s=88, layout="planar"),
    case(dtype="bfloat16", c=16, s=300, layout="channels_last", ignore=0.2, squared=1, map=1),
    case(c=5, s=164, n=2, layout="channels_last", weight=1, pixel_weight=1, bad=41),
    case(c=41, s=300, n=2, layout="planar", smoothing=0.1, weight=1, squared=1, confusion=1, ignore=0.2, bad=29),
    case(dtype="bfloat16", c=40, s=75, layout="channels_last", map=1, confusion=1, pixel_weight=1),
    case(c=41, s=72, layout="channels_last", weight=1),
    case(c=32, s=64, layout="planar", n=2, weight=1),
)
