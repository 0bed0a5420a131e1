"""Cases of dice_ce_loss for the driver: every kernel template and option, odd and small shapes."""

from __future__ import annotations

import itertools

from tests.ladder.operator import case

DTYPES = ("float32", "float64", "bfloat16", "float16")
LABELS = ("int64", "uint8", "int32", "int16")
LAYOUTS = ("planar", "channels_last")
#: The kernels hold up to 8, 24 and 32 classes in registers; more are swept, in groups of 8 by 8 warps.
CLASSES = (1, 2, 5, 8, 19, 21, 24, 32, 33, 64, 150, 256)
#: Tiles have 32 to 256 pixels, chunks 1024: one pixel, primes, exact tiles, several chunks with a tail.
PIXELS = (131, 1, 256, 1024 + 37, 97, 64, 31, 512, 2 * 1024 + 8, 257)
SWEPT_PIXELS = (96, 1, 100, 97, 1024 + 40, 64, 31)
#: Rows that may be read 16 bytes at a time, that may not because of where they begin, and because of what lies between.
PLACES = ({}, {"offset": 1}, {"pad": 1}, {"pad": 8})

OPTIONS = (
    {},
    {"weight": 1, "ignore": 0.2},
    {"squared": 1, "pixel_weight": 1, "confusion": 1},
    {"smoothing": 0.1, "weight": 1, "map": 1, "bad": 29},
    {"squared": 1, "smoothing": 0.2, "ignore": 0.9, "map": 1, "confusion": 1},
    {"weight": 1, "pixel_weight": 1, "smoothing": 0.1, "confusion": 1, "bad": 41, "ignore": 0.1},
    {"overlap": 0, "map": 1, "weight": 1},
    {"poison": 1, "ignore": 0.3, "n": 2},
)


def every_template() -> list[str]:
    """Each dtype, layout and number of classes once; all else taken in turn, in cycles of different lengths."""
    lines = []
    for i, (dtype, layout, classes) in enumerate(itertools.product(DTYPES, LAYOUTS, CLASSES)):
        pixels = PIXELS[i % len(PIXELS)]
        if classes > 32:
            pixels = min(SWEPT_PIXELS[i % len(SWEPT_PIXELS)], 100 if classes > 64 else 2048)
        options = OPTIONS[(i + i // len(OPTIONS)) % len(OPTIONS)]
        place = PLACES[(i // 3) % len(PLACES)]
        label = LABELS[(i // 2) % len(LABELS)]
        shape = {"dtype": dtype, "layout": layout, "c": classes, "s": pixels}
        lines.append(case(**shape, label=label, **place, **{"n": 1, **options}, seed=i + 1))
    return lines


def every_option() -> list[str]:
    """One small shape of each kernel, planar and channels last, with each set of options."""
    shapes = (
        {"dtype": "float32", "c": 5, "s": 32 * 4 * 4 + 4},
        {"dtype": "bfloat16", "c": 16, "s": 32 * 8 + 5},
        {"dtype": "float16", "c": 19, "s": 32 * 8 + 8},
        {"dtype": "float32", "c": 41, "s": 76},
    )
    return [
        case(**shape, layout=layout, **{"n": 1, **options}, seed=i + 1)
        for i, (shape, layout, options) in enumerate(itertools.product(shapes, LAYOUTS, OPTIONS))
    ]


def nothing() -> list[str]:
    return [case(**shape, confusion=1, map=1) for shape in ({"n": 0, "s": 5}, {"n": 2, "s": 0})]


def several_images_of_several_chunks() -> dict[str, list[str]]:
    """By number of classes and layout."""
    options = {"ignore": 0.1, "weight": 1, "confusion": 1, "map": 1, "bad": 501}
    return {
        f"{classes} classes, {layout}": [
            case(dtype=dtype, c=classes, n=2, s=pixels, layout=layout, **options, offset=offset)
            for dtype in DTYPES
            for offset in (0, 1)
        ]
        for (classes, pixels), layout in itertools.product(((3, 2048 + 57), (40, 1024 + 57)), LAYOUTS)
    }
