"""Bugs to be planted in the CUDA kernels of dice_bce_loss, and cases that catch them."""

from __future__ import annotations

from tests.ladder.operator import Mutant, case

FORWARD, BACKWARD = "dice_bce_loss.cu", "dice_bce_loss_backward.cu"
LINES, PASS, RUN = "dice_bce_loss_lines.cuh", "dice_bce_loss_pass.cuh", "run.cuh"
SUMS, ELEMENT, COMBINE = "dice_bce_loss_sums.cuh", "dice_bce_loss_element.cuh", "dice_ce_loss_combine.cu"
UNREAD, REWRITTEN = "missing barrier before reading a reduction buffer", "missing barrier before rewriting it"
EARLY, PAST = "shuffle loop that ends early", "store one past the row"
SIXTEEN, WRONG = "16-byte access that ignores tail or alignment", "wrong element"

MUTANTS = (
    Mutant(
        "bce: sums of warps read at once",
        UNREAD,
        SUMS,
        "bad_of_warp[warp] = bad;\n  }\n  SYNC_THREADS();\n",
        "bad_of_warp[warp] = bad;\n  }\n",
        (3, 4),
    ),
    Mutant(
        "bce: positive weights read at once",
        UNREAD,
        FORWARD,
        "  SYNC_THREADS();\n  A positive[K];",
        "  A positive[K];",
        (3, 4),
    ),
    Mutant(
        "bce: the backward's constants read at once",
        UNREAD,
        BACKWARD,
        "  SYNC_THREADS();\n  const A bce",
        "  const A bce",
        (3, 4),
    ),
    Mutant(
        "bce: constants of the first threads' channels",
        "partial result left out",
        LINES,
        "i < share.own(); i +=",
        "i < share.own() && i < 32; i +=",
        (3, 4),
    ),
    Mutant(
        "bce: a slab's constants from channel 0 on",
        WRONG,
        LINES,
        "kRows ? (first() + i) % channels",
        "kRows ? i % channels",
        (3,),
    ),
    Mutant(
        "bce: constants of neighbouring channels",
        WRONG,
        LINES,
        "(element - first() + v) % own()",
        "(element - first()) % own()",
        (3,),
    ),
    Mutant(
        "bce: slabs of whole rows share their sums",
        "partial result left out",
        LINES,
        "(cut.whole_slabs() ? slab * cut.chunks : 0)",
        "0",
        (3, 4),
    ),
    Mutant(
        "bce: rows before the line",
        "load before the row",
        PASS,
        "share.active && (kRows || row[u] >= 0) &&",
        "share.active &&",
        (3, 4),
    ),
    Mutant(
        "bce: sums of channels end early",
        EARLY,
        SUMS,
        "mask > 0; mask /= 2) total +=",
        "mask > 1; mask /= 2) total +=",
        (3,),
    ),
    Mutant(
        "bce: rows beyond the line",
        PAST,
        PASS,
        " && row[u] * cut.row_elements + share.element < cut.line_elements;",
        ";",
        (3, 4, 5),
    ),
    Mutant(
        "bce: threads beyond the row",
        PAST,
        LINES,
        "active = slot < cut.depth && element < first() + width();",
        "active = slot < cut.depth;",
        (3, 4, 5),
    ),
    Mutant("bce: threads beyond the rows", WRONG, LINES, "active = slot < cut.depth &&", "active =", (3, 4)),
    Mutant(
        "bce: staged elements read at once", UNREAD, PASS, "wait<0>();\n      SYNC_THREADS();\n", "wait<0>();\n", (3, 4)
    ),
    Mutant(
        "bce: staged elements overwritten before they were read",
        REWRITTEN,
        PASS,
        "      SYNC_THREADS();  // the pass before has been read\n",
        "",
        (3, 4),
    ),
    Mutant(
        "bce: results written before all are there",
        UNREAD,
        PASS,
        "= v[u][0];\n        SYNC_THREADS();\n",
        "= v[u][0];\n",
        (3, 4),
    ),
    Mutant("bce: a run's last elements left out", WRONG, RUN, "at < head : at < count", "at < head : false", (3,)),
    Mutant("bce: a run's pieces beyond its end", PAST, RUN, "at < tail; at +=", "at < count; at +=", (3, 4)),
    Mutant(
        "bce: a run's first elements in its pieces",
        SIXTEEN,
        RUN,
        "to_sector < count ? to_sector",
        "0 < count ? 0",
        (3, 5),
    ),
    Mutant("bce: any number of pixels", SIXTEEN, LINES, "vectors && in.pixels % most == 0", "vectors", (3, 4, 5)),
    Mutant("bce: any elements of an image", SIXTEEN, LINES, " && c * in.pixels % most == 0", "", (3, 4, 5)),
    Mutant(
        "bce: any gap between pixels",
        SIXTEEN,
        LINES,
        "c % most == 0 && every(pixels_aligned, with_weight)",
        "c % most == 0",
        (3, 4, 5),
    ),
    Mutant(
        "bce: gaps between pixels of whole vectors",
        WRONG,
        LINES,
        "dense && few(vector)",
        "few(vector)",
        (3, 4),
    ),
    Mutant(
        "bce: labels may begin anywhere",
        SIXTEEN,
        LINES,
        "good(in.target, of_label) &&",
        "",
        (3, 4, 5),
    ),
    Mutant("bce: the result may begin anywhere", SIXTEEN, LINES, "good(result, result_bytes) &&", "", (3, 4, 5)),
    Mutant(
        "bce: channel of the row's first element", WRONG, LINES, "(element + v) % channels", "element % channels", (3,)
    ),
    Mutant(
        "bce: pixel of the row's first element", WRONG, LINES, "(element + v) / channels", "element / channels", (3,)
    ),
    Mutant(
        "bce: bad labels out of order",
        WRONG,
        ELEMENT,
        "if (count++ > 0 && position < at) return;",
        "if (count++ > 0) return;",
        (3,),
    ),
    Mutant(
        "bce: ignored elements count",
        WRONG,
        ELEMENT,
        "return ignored || !valid ? A(NAN)",
        "return !valid && !ignored ? A(NAN)",
        (3,),
    ),
    Mutant("bce: ignored labels are bad", WRONG, ELEMENT, "if (!ignored && !valid)", "if (!valid)", (3,)),
    Mutant("bce: squares have the slope of sums", WRONG, ELEMENT, "2 * slopes.p * of.prob", "slopes.p", (3,)),
    Mutant(
        "bce: focal factor is constant",
        WRONG,
        ELEMENT,
        "result + gamma * of_r * of.cross_entropy(t, q)",
        "result",
        (3,),
    ),
    Mutant(
        "bce: negative labels have the positive weight", WRONG, ELEMENT, "+ (1 - t) * up", "+ q * (1 - t) * up", (3,)
    ),
    Mutant("bce: map of ignored elements", WRONG, FORWARD, "loss[u][v] = 0;\n          if", "if", (3,)),
    Mutant(
        "bce: gradient of ignored elements",
        WRONG,
        BACKWARD,
        "if (counts(label[u][v]))\n",
        "\n",
        (3,),
    ),
    Mutant(
        "bce: a chunk is left out",
        "partial result left out",
        COMBINE,
        "for (int64_t i = 0; i < chunks_of_image; ++i)",
        "for (int64_t i = 0; i + 1 < chunks_of_image; ++i)",
        (3,),
    ),
    Mutant(
        "bce: blocks of the first images",
        "partial result left out",
        FORWARD,
        "cut.sums_of_image(), cut.blocks(),",
        "cut.sums_of_image(), cut.blocks() / 2,",
        (3,),
    ),
)

#: Small; of every way in which lines are cut, with each option.
CASES = (
    case(c=3, s=64, n=2, bad=29, map=1, pos_weight=1, gamma=2, ignore=0.2),
    case(c=3, s=61, n=2, bad=29, map=1, label="float32", weights="pixel"),
    case(c=2, s=1024 * 9 + 4, ignore=0.1, squared=1),
    case(c=3, s=488, layout="channels_last", n=2, bad=29, map=1, weights="pixel", pos_weight=1, ignore=0.2),
    case(c=19, s=45, layout="channels_last", dtype="bfloat16", label="float16", squared=1, n=2, gamma=0.5),
    case(c=8, s=25, layout="channels_last", pad=1, squared=1, bad=17),
    case(c=3, s=60, layout="channels_last", target_pad=4, weights="each"),
    case(c=3, s=40, layout="channels_last", target_pad=1),
    case(c=300, s=7, layout="channels_last", bad=41),
    case(c=515, s=3, layout="channels_last"),
    case(c=1, s=61),
    case(c=3, s=36, n=2, map=1),
    case(c=3, s=1045, n=2, dtype="float64", label="float32", offset=1, target_offset=3),
    case(c=3, s=61, layout="channels_last"),
    case(c=4, s=64, target_offset=1),
    case(c=4, s=64, offset=1),
    case(c=4, s=64, result_offset=1, map=1),
    # A thread sees the bad label of its second row last, which is the first of all.
    case(c=2, s=1536, layout="channels_last", bad=1024),
    case(c=16, s=20, layout="channels_last", dtype="bfloat16", target_pad=1, map=1),
)
