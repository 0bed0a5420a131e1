"""Cases of dice_bce_loss for the driver: every kernel template and option, odd and small shapes."""

from __future__ import annotations

import itertools

from tests.ladder.operator import case

DTYPES = ("float32", "bfloat16", "float16", "float64")
LABELS = ("uint8", "float32", "bfloat16", "float64", "float16")
LAYOUTS = ("planar", "channels_last")
#: Rows of pixels: whole vectors of one pixel, of several, wider than a block, and elements one by one.
SHAPES = (
    {"c": 1, "s": 64},
    {"c": 3, "s": 232},
    {"c": 8, "s": 16},
    {"c": 19, "s": 48},
    {"c": 3, "s": 37},
    {"c": 40, "s": 24},
    {"c": 1, "s": 1},
    {"c": 2, "s": 131},
    {"c": 264, "s": 3},
    {"c": 5, "s": 8, "n": 3},
    {"c": 131, "s": 16},
    {"c": 3, "s": 36, "n": 3},
)
#: Rows that may be read 16 bytes at a time, that may not because of where they begin, and because of what lies between.
PLACES = ({}, {"offset": 1}, {"pad": 8}, {"target_offset": 1}, {"pad": 1}, {"target_pad": 16}, {"target_pad": 3})
OPTIONS = (
    {},
    {"ignore": 0.2, "pos_weight": 1, "weights": "pixel"},
    {"squared": 1, "weights": "each", "map": 1},
    {"gamma": 2, "bad": 29, "map": 1, "pos_weight": 1},
    {"gamma": 0.4, "ignore": 0.5, "weights": "pixel", "outliers": 1000, "n": 2},
    {"overlap": 0, "gamma": 1.5, "squared": 1, "bad": 17, "ignore": 0.1, "weights": "each"},
    {"bce": 0, "squared": 1, "outliers": 30, "n": 2, "map": 1, "weights": "pixel"},
)


def every_template() -> list[str]:
    """Each dtype, layout and shape once; all else taken in turn, in cycles of different lengths."""
    lines = []
    for i, (dtype, layout, shape) in enumerate(itertools.product(DTYPES, LAYOUTS, SHAPES)):
        options = OPTIONS[(i + i // 12) % len(OPTIONS)]
        label = LABELS[(i + i // 5) % len(LABELS)]
        place = PLACES[i // 2 % len(PLACES)] if i % 4 == 3 else {}
        lines.append(case(dtype=dtype, layout=layout, label=label, **{"n": 1, **options, **shape}, **place, seed=i + 1))
    return lines


def every_place() -> list[str]:
    """Each alignment of vectors that would be, with each type of labels."""
    shapes = ({"dtype": "float32", "c": 4, "s": 72}, {"dtype": "bfloat16", "c": 16, "s": 40})
    return [
        case(**shape, layout=layout, label=LABELS[i % 5], **place, **OPTIONS[i % len(OPTIONS)], seed=i + 1)
        for i, (shape, layout, place) in enumerate(itertools.product(shapes, LAYOUTS, PLACES))
    ]


def nothing() -> list[str]:
    return [case(map=1, **shape) for shape in ({"n": 0, "s": 5}, {"n": 2, "s": 0}, {"n": 0, "layout": "channels_last"})]


def several_images_of_several_chunks() -> dict[str, list[str]]:
    """The last: lines that begin anywhere, of several passes through shared memory."""
    options = {"ignore": 0.1, "pos_weight": 1, "weights": "pixel", "map": 1, "bad": 501, "n": 2}
    return {
        f"{shape['c']} channels, {layout}": [
            case(dtype=dtype, layout=layout, label=label, **shape, **options, target_offset=offset)
            for dtype, label, offset in (("float32", "uint8", 0), ("bfloat16", "float32", 0), ("float16", "uint8", 1))
        ]
        for shape, layout in itertools.product(({"c": 3, "s": 4096 + 64}, {"c": 300, "s": 64}), LAYOUTS)
    } | {
        f"anywhere, {layout}": [
            case(c=3, s=91001, layout=layout, label=label, offset=1, target_offset=3, result_offset=2, **options)
            for label in ("uint8", "float16")
        ]
        for layout in LAYOUTS
    }
