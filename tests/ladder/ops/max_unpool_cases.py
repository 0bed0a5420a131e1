"""Cases of max_pool2d and max_unpool2d for the driver: every window, and every dtype, with every layout."""

from __future__ import annotations

from tests.ladder.operator import case

FLOATS = ("float32", "float64", "bfloat16", "float16")
DTYPES = (*FLOATS, "uint8", "int8", "int16", "int32", "int64")
LAST = {"coarse_layout": "channels_last", "index_layout": "channels_last", "fine_layout": "channels_last"}


def window(kernel: int, stride: int, padding: int = 0, dilation: int = 1, axes: str = "hw") -> dict[str, int]:
    options = {"k": kernel, "s": stride, "p": padding, "d": dilation}
    return {name + axis: value for axis in axes for name, value in options.items()}


#: Of 2x2 with stride 2: rows that fill vectors and that do not; an image that is a row more, or less, than the windows.
HALVES = (
    {"h": 5, "w": 8, "H": 10, "W": 16, "n": 2},
    {"h": 5, "w": 8, "H": 11, "W": 16},
    {"h": 5, "w": 8, "H": 9, "W": 16},
    {"h": 3, "w": 7, "H": 7, "W": 15},
    {"h": 3, "w": 7, "H": 5, "W": 13},
    {"h": 1, "w": 1, "H": 1, "W": 1},
    {"h": 11, "w": 16, "H": 22, "W": 32},
)
#: Padding, windows that overlap, that are dilated, that have gaps between them, of 256 taps, and of one.
WINDOWS = (
    {"h": 5, "w": 6, "H": 9, "W": 11, **window(3, 2, 1)},
    {"h": 5, "w": 8, "H": 5, "W": 8, **window(3, 1, 1)},
    {"h": 5, "w": 4, "H": 7, "W": 13, **window(2, 1, 0, 2, "h"), **window(3, 2, 0, 3, "w")},
    {"h": 3, "w": 4, "H": 9, "W": 12, **window(3, 3)},
    {"h": 3, "w": 4, "H": 8, "W": 16, **window(2, 3)},
    {"h": 1, "w": 2, "H": 16, "W": 17, **window(16, 1)},
    {"h": 4, "w": 8, "H": 4, "W": 8, **window(1, 1)},
    {"h": 3, "w": 1, "H": 7, "W": 1, **window(3, 2, 0, 1, "h"), **window(1, 1, 0, 1, "w")},
)
LAYOUTS = (
    {},
    {"fine_pad": 3, "fine_offset": 1},
    {"coarse_pad": 8, "fine_pad": 16, "index_pad": 8},
    {"fine_pad": 16, "index_pad": 5, "index_offset": 3},
    {"c": 16, **LAST},
    {"c": 5, **LAST},
    {"c": 16, "fine_pad": 16, "index_pad": 16, **LAST},
    {"c": 16, "index_pad": 1, **LAST},
)
BAD = {"bad": 5}


def cases(op: str, dtypes: tuple[str, ...], **options: object) -> list[str]:
    chosen = [(dtype, HALVES[0], layout) for dtype in dtypes for layout in LAYOUTS]
    shapes = HALVES + WINDOWS
    chosen += [
        (dtypes[(i + j) % len(dtypes)], shape, layout)
        for i, shape in enumerate(shapes)
        for j, layout in enumerate(LAYOUTS)
    ]
    lines = [case(op=op, dtype=dtype, **{**shape, **layout, **options}) for dtype, shape, layout in chosen]
    return list(dict.fromkeys(lines))


def flat(op: str, dtypes: tuple[str, ...], **options: object) -> list[str]:
    shapes = (HALVES[0], {"h": 3, "w": 7, "H": 5, "W": 11}, {"h": 7, "w": 13, "H": 2, "W": 8}, HALVES[5])
    chosen = [
        (dtypes[(i + j) % len(dtypes)], shape, layout)
        for i, shape in enumerate(shapes)
        for j, layout in enumerate(LAYOUTS)
    ]
    chosen += [(dtype, shapes[0], layout) for dtype in dtypes for layout in (LAYOUTS[0], LAYOUTS[2], LAYOUTS[4])]
    lines = [case(op=op, dtype=dtype, **{**shape, **layout, **options}) for dtype, shape, layout in chosen]
    return list(dict.fromkeys(lines))


CASES = {
    "pool": [line + " special=1" for line in cases("pool", DTYPES)],
    "unpool": cases("unpool", DTYPES, **BAD),
    "accumulate": cases("unpool", FLOATS, accumulate=1, **BAD),
    "backward": cases("unpool_backward", FLOATS, **BAD),
    "backward of sums": cases("unpool_backward", FLOATS, accumulate=1, **BAD),
    "flat": flat("flat", DTYPES, among=9, **BAD),
    "flat sums": flat("flat", FLOATS, among=9, accumulate=1, **BAD),
    "flat backward": flat("flat_backward", FLOATS, **BAD),
    "no record": [case(op="unpool", record=0, bad=3, **options) for options in ({}, LAST, WINDOWS[0])]
    + [case(op="flat", record=0, bad=3, accumulate=accumulate) for accumulate in (0, 1)],
    "nothing": [case(op=op, n=0) for op in ("pool", "unpool", "unpool_backward", "flat", "flat_backward")]
    + [case(op="flat", n=0, accumulate=1)]
    + [case(op=op, **{axis: 0}) for op in ("unpool", "unpool_backward", "flat", "flat_backward") for axis in "hw"],
}
#: Several tiles, and strips of several blocks.
LARGE = {
    "tiles": [
        case(op=op, dtype="bfloat16", c=2, h=19, w=1080, H=38, W=2160, **options)
        for op in ("pool", "unpool", "unpool_backward")
        for options in ({}, LAST)
    ],
    "sums": [case(op="flat", c=9, h=19, w=23, H=8, W=8, accumulate=1)],
}
