"""Cases of dilated_conv for the ladder: windows, layouts and channels that take each path of the kernels."""

from __future__ import annotations

from tests.ladder.operator import case

DTYPES = ("float32", "bfloat16", "float16", "float64")
LAST = {"in_layout": "channels_last", "out_layout": "channels_last"}
OPS = ("forward", "grad_input", "grad_weight")

WINDOWS = (
    {"h": 1, "w": 1, "kernel": 1, "padding": 0},
    {"h": 7, "w": 9, "kernel": 3, "padding": 2, "dilation": 2},
    {"h": 8, "w": 5, "kernel": 3, "padding": 1, "stride": 2},
    {"h": 11, "w": 10, "kernel": 2, "kernel_w": 3, "padding": 0, "stride": 3, "stride_w": 2, "dilation_w": 3},
    {"h": 5, "w": 13, "kernel": 1, "kernel_w": 7, "padding": 0, "padding_w": 9, "dilation_w": 3, "stride_w": 4, "n": 2},
    {"h": 9, "w": 6, "kernel": 1, "padding": 0, "stride": 2},
    {"h": 3, "w": 4, "kernel": 5, "padding": 6, "dilation": 3, "n": 3},
)
CHANNELS = (
    {"c": 8, "out": 16, **LAST},
    {"c": 16, "out": 8, "in_pad": 8, "out_pad": 8, **LAST},
    {"c": 3, "out": 5, **LAST},
    {"c": 5, "out": 19, "in_pad": 1, "in_gap": 1},
    {"c": 24, "out": 8, "in_layout": "channels_last", "out_gap": 2, "out_offset": 1},
    {"c": 8, "out": 24, "groups": 1, "out_layout": "channels_last"},
    {"c": 16, "out": 32, "groups": 2, **LAST},
    {"c": 15, "out": 10, "groups": 5},
    {"c": 16, "out": 16, "groups": 16, **LAST},
    {"c": 6, "out": 12, "groups": 6},
)
EPILOGUES = (
    {},
    {"bias": True, "activation": 1},
    {"scale": True, "shift": True, "activation": 2},
    {"bias": True, "scale": True, "shift": True, "residual": True, "activation": 3},
    {"residual": True, "residual_layout": "channels_last", "activation": 4},
    {"shift": True, "residual": True, "residual_pad": 3, "activation": 5},
)


def cases(op: str) -> list[str]:
    """Every window and every dtype with every choice of channels, but not every triple; epilogues in turn."""
    lines = []
    for i, window in enumerate(WINDOWS):
        for j, channels in enumerate(CHANNELS):
            dtype = DTYPES[(i + j) % (3 if j < 8 else 4)]
            fast = {"fast": True} if dtype == "float32" and (i + j) % 2 else {}
            epilogue = EPILOGUES[(i + 2 * j) % len(EPILOGUES)] if op == "forward" else {}
            lines.append(case(op=op, dtype=dtype, **{**window, **channels}, **epilogue, **fast))
    lines.append(case(op=op, dtype="float64", **{**WINDOWS[1], **CHANNELS[0]}))
    return lines


#: More pixels and channels than a tile has, several steps of the sum, images and rows that end within a tile.
TILES = (
    {"c": 72, "out": 72, "h": 9, "w": 13, "kernel": 3, "padding": 2, "dilation": 2, **LAST},
    {"c": 72, "out": 66, "h": 12, "w": 12, "kernel": 1, "padding": 0},
    {"c": 3, "out": 70, "h": 15, "w": 17, "kernel": 7, "padding": 3, "stride": 2, "n": 2},
    {"c": 20, "out": 64, "h": 16, "w": 16, "kernel": 3, "padding": 1, "out_layout": "channels_last"},
)


def tiles(op: str) -> list[str]:
    return [
        case(op=op, dtype=dtype, **shape, **({"fast": True} if dtype == "float32" and i % 2 else {}))
        for i, shape in enumerate(TILES)
        for dtype in DTYPES[:3]
    ] + [case(op=op, dtype="float32", **TILES[0], fast=True), case(op=op, dtype="float32", **TILES[1])]
