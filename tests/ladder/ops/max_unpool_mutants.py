"""Bugs to plant in the kernels of max_pool2d and max_unpool2d, and cases that catch them."""

from __future__ import annotations

from tests.ladder.operator import Mutant, case
from tests.ladder.ops.max_unpool_cases import LAST, window

LOCAL, POOL, FLAT = "max_unpool.cu", "max_unpool_pool.cu", "max_unpool_flat.cu"
SHARED, RECORD = "max_unpool.cuh", "max_unpool_record.cuh"
WRONG, PAST, SIXTEEN = "wrong element", "store one past the row", "16-byte access that ignores tail or alignment"
LOST, ORDER, UNMASKED = "atomic replaced by a store", "wrong order of sums", "thread that is not masked"

MUTANTS = (
    Mutant("pool: the last among equals", "ties", POOL, "a > b || a != a", "a >= b || a != a", (3,)),
    Mutant("pool: NaN passed over", "NaN lost", POOL, "a > b || a != a", "a > b", (3,)),
    Mutant(
        "pool: integers compared as floats", WRONG, POOL, "return value;", "return static_cast<float>(value);", (3,)
    ),
    Mutant("pool: begins with zero", "wrong start", POOL, "!started || wins", "(started && false) || wins", (3,)),
    Mutant(
        "pool: taps beside the image",
        "read one past the row",
        POOL,
        "if (static_cast<unsigned>(x) >= static_cast<unsigned>(horizontal.size)) continue;",
        "",
        (3, 4, 5),
    ),
    Mutant(
        "pool: the row below the image",
        "read one past the image",
        POOL,
        "2 * (place.row + r) + 1 < height",
        "2 * (place.row + r) + 1 <= height",
        (3, 4, 5),
    ),
    Mutant(
        "unpool: the row below the image",
        PAST,
        LOCAL,
        "if (rows > 1) store_vector(to + p.output",
        "store_vector(to + p.output",
        (4, 5),
    ),
    Mutant("unpool: the column beside the image", PAST, LOCAL, "tap % 2 < columns;", "true;", (4, 5)),
    Mutant("unpool: rows that are no whole vectors", SIXTEEN, SHARED, "fine.width % vector == 0", "true", (3,)),
    Mutant(
        "unpool: indices that are not aligned",
        SIXTEEN,
        SHARED,
        "vectors_fit(indices, 1, true, vector / 2)",
        "true",
        (3, 4, 5),
    ),
    Mutant(
        "unpool: the earliest window stands",
        ORDER,
        LOCAL,
        "out[v] = value[v];",
        "out[v] = out[v] == T(0) ? value[v] : out[v];",
        (3,),
    ),
    Mutant("unpool: a stride too late", WRONG, SHARED, "rest >= axis.stride", "rest > axis.stride", (3,)),
    Mutant("unpool: rows of a tap rounded down", WRONG, SHARED, "(65536u + ", "(65537u - ", (3,)),
    Mutant("unpool: gathered rows all the same", WRONG, LOCAL, ", rows.to_next_position(vertical)", "", (3,)),
    Mutant("unpool backward: every window", WRONG, LOCAL, "!p.accumulate && (picked", "false && (picked", (3,)),
    Mutant("unpool backward: a window in its own way", WRONG, LOCAL, "own.to_next_tap(windows.horizontal);", "", (3,)),
    Mutant("unpool backward: outside the image", UNMASKED, LOCAL, "if (t.inside && ", "if (", (4, 5)),
    Mutant("record: not cleared", "not initialised", RECORD, "*record = BadData{0, 0, 0}", "record->count = 0", (3,)),
    Mutant("record: the last of a thread", WRONG, RECORD, "position < first", "position > first", (3,)),
    Mutant(
        "record: lost counts",
        LOST,
        RECORD,
        "device::atomic_add(reinterpret_cast<unsigned long long*>(&record->count), "
        "static_cast<unsigned long long>(count))",
        "record->count += count",
        (4,),
    ),
    Mutant(
        "record: channels side by side", WRONG, LOCAL, "kAcross ? p.indices.height * p.indices.width : 1", "1", (3,)
    ),
    Mutant("flat: one window less", WRONG, FLAT, "scratch.apart, position + 1)", "scratch.apart, position)", (3,)),
    Mutant(
        "flat: whoever comes last",
        LOST,
        FLAT,
        "device::atomic_max(winners + scratch.begin + to * scratch.apart, position + 1)",
        "winners[scratch.begin + to * scratch.apart] = position + 1",
        (4,),
    ),
    Mutant(
        "flat: before the plane",
        "index not checked",
        FLAT,
        "static_cast<uint64_t>(to) < p.elements",
        "to < static_cast<int64_t>(p.elements)",
        (4, 5),
    ),
    Mutant("flat: scratch not cleared to its end", "not initialised", FLAT, "i < pieces", "i < pieces - 1", (3,)),
    Mutant(
        "flat sums: from the last to the first",
        ORDER,
        FLAT,
        "int l = 0; l < device::kWarp; ++l",
        "int l = device::kWarp - 1; l >= 0; --l",
        (3,),
    ),
    Mutant("flat sums: no barrier of the warp", "missing barrier", FLAT, "SYNC_WARP();", "", (4,)),
    Mutant("flat sums: all lanes store", "two writers", FLAT, "if (is_first)", "if (is_first || to != kNowhere)", (4,)),
    Mutant(
        "flat backward: after the plane",
        "index not checked",
        FLAT,
        "static_cast<uint64_t>(from) < grad_output.elements",
        "from >= 0",
        (4, 5),
    ),
)

THREE, ONE = window(3, 2, 1), window(3, 1, 1)
MUTANT_CASES = [
    case(op="pool", dtype="int32", h=5, w=8, H=9, W=16),
    case(op="pool", special=1, h=5, w=6, H=9, W=11, **THREE),
    case(op="unpool", h=5, w=8, H=9, W=16, bad=4),
    case(op="unpool", h=3, w=7, H=5, W=14, coarse_pad=1, index_pad=1, fine_pad=2),
    case(op="unpool", h=3, w=8, H=6, W=16, index_pad=1),
    case(op="unpool", h=3, w=7, H=5, W=13, c=8, bad=3, **LAST),
    case(op="unpool", h=5, w=6, H=9, W=11, bad=3, **THREE),
    case(op="unpool", h=5, w=6, H=9, W=11, c=16, bad=100, seed=4, **THREE, **LAST),
    case(op="unpool", h=5, w=8, H=5, W=8, **ONE),
    case(op="unpool_backward", h=5, w=8, H=5, W=8, bad=6, **ONE),
    case(op="unpool_backward", h=5, w=6, H=9, W=11, bad=2, **THREE),
    case(op="flat", among=5, bad=4),
    case(op="flat", dtype="uint8", h=3, w=7, H=5, W=11),
    case(op="flat", h=7, w=13, H=2, W=8, accumulate=1),
    case(op="flat_backward", bad=3),
]
