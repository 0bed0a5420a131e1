"""dilated_conv2d against PyTorch over a grid of shapes, and where it is slower.

    python -m benchmarks.sweep_dilated_conv

Convolution, batch norm and ReLU of as many outputs as inputs, 3x3, padding as large as the dilation, batch 1, float32.
Each shape is timed in NCHW and in channels_last against eager PyTorch of the same layout, in interleaved laps. Shapes
come in a random order that the seed gives, as many as the time allows.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

import segops
from benchmarks.compare import number, table
from benchmarks.interleave import Effort, laps
from tests.cases import make_logits

CHANNELS = (3, 16, 32, 64, 128, 256, 512, 1024)
SIZES = (7, 14, 33, 65, 129, 257, 513)
DILATIONS = (1, 2, 4, 8, 16)
#: Of a shape: multiply-adds, and elements of the image.
MOST_PRODUCTS, MOST_ELEMENTS = 2.5e9, 20e6
LAYOUTS = ("contiguous", "channels_last")
PRECISIONS = ("default", "fast")


class Found(NamedTuple):
    channels: int
    size: int
    dilation: int
    layout: str
    eager: float  # seconds
    ratios: dict[str, float]  # eager's time as a multiple of segops', by precision


def shapes(seed: int) -> list[tuple[int, int, int]]:
    grid = [
        (channels, size, dilation)
        for channels, size, dilation in itertools.product(CHANNELS, SIZES, DILATIONS)
        if 9 * (channels * size) ** 2 < MOST_PRODUCTS and channels * size**2 < MOST_ELEMENTS
    ]
    random.Random(seed).shuffle(grid)
    return grid


def measure(channels: int, size: int, dilation: int, effort: Effort) -> Iterator[Found]:
    weight = make_logits((channels, channels, 3, 3), scale=(9 * channels) ** -0.5, seed=1)
    mean, variance, gain, offset = (make_logits((channels,), seed=seed).square() + 0.1 for seed in range(2, 6))
    scale = gain * torch.rsqrt(variance + 1e-5)
    shift = offset - mean * scale
    for layout in LAYOUTS:
        x = make_logits((1, channels, size, size), layout=layout, scale=1.0)

        def eager() -> object:
            y = F.conv2d(x, weight, None, 1, dilation, dilation)  # noqa: B023
            return F.relu(F.batch_norm(y, mean, variance, gain, offset))

        def ours(precision: str) -> object:
            options = {"scale": scale, "shift": shift, "activation": "relu", "precision": precision}
            return segops.dilated_conv2d(x, weight, None, 1, dilation, dilation, **options)  # noqa: B023

        calls = {"eager": eager, "default": lambda: ours("default"), "fast": lambda: ours("fast")}
        samples = laps(calls, effort)
        ratios = {
            precision: statistics.median(a / b for a, b in zip(samples["eager"], samples[precision], strict=True))
            for precision in PRECISIONS
        }
        yield Found(channels, size, dilation, layout, statistics.median(samples["eager"]), ratios)


def report(found: Sequence[Found]) -> str:
    """How many shapes are slower than eager PyTorch's, by how long that takes; and which they are."""
    rows = []
    for layout, precision in itertools.product(LAYOUTS, PRECISIONS):
        for least, most in ((0.0, 1e-4), (1e-4, 1e-3), (1e-3, 1e9)):
            ratios = [f.ratios[precision] for f in found if f.layout == layout and least <= f.eager < most]
            if not ratios:
                continue
            span = f"{least * 1e3:g} ms and more" if most > 1 else f"{least * 1e3:g} to {most * 1e3:g} ms"
            numbers = [number(n) for n in (min(ratios), statistics.median(ratios), max(ratios))]
            rows.append([layout, precision, span, str(len(ratios)), *numbers, str(sum(r < 0.95 for r in ratios))])
    header = ["layout", "precision", "eager takes", "shapes", "least", "median", "most", "below 0.95"]
    slower = [
        [
            f"(1, {f.channels}, {f.size}, {f.size})",
            str(f.dilation),
            f.layout,
            f"{f.eager * 1e3:.3g}",
            *map(number, f.ratios.values()),
        ]
        for f in sorted(found)
        if min(f.ratios.values()) < 0.95 and f.eager >= 1e-4
    ]
    text = "Eager PyTorch's time as a multiple of segops':\n\n" + table(header, rows)
    where = table(["input", "dilation", "layout", "eager ms", *PRECISIONS], slower)
    return f"{text}\n\nSlower shapes that take 0.1 ms or more:\n\n{where}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_dilated_conv", description=__doc__)
    parser.add_argument("--seconds", type=float, default=220.0, help="begin no shape after these (220)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the shapes (0)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch and segops (2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    begun, found = time.perf_counter(), list[Found]()
    with torch.no_grad():
        for shape in shapes(options.seed):
            if time.perf_counter() - begun >= options.seconds:
                break
            found += measure(*shape, Effort(laps=3, seconds=0.15))
    print(report(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
