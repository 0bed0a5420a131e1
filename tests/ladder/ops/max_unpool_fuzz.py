"""Random cases of max_pool2d and max_unpool2d for the driver: small images, any window, corrupt indices."""

from __future__ import annotations

import random

from tests.ladder.operator import case
from tests.ladder.ops.max_unpool_cases import DTYPES, FLOATS
from tests.simt.build import MODES

OPS = ("pool", "unpool", "unpool", "unpool", "unpool_backward", "flat", "flat", "flat_backward")
#: Elements of one tensor: the host execution takes its time for each.
MOST = 30000


def size(rng: random.Random) -> int:
    return rng.randint(1, rng.choice((3, 12, 40)))


def axis(rng: random.Random) -> dict[str, int]:
    """Half of them are windows that networks have; few have up to 16 taps, so that every byte is one of 256."""
    kind = rng.random()
    if kind < 0.3:
        return {"k": 2, "s": 2, "p": 0, "d": 1}
    if kind < 0.5:
        return {"k": 3, "s": 2, "p": 1, "d": 1}
    kernel = rng.randint(1, 16 if kind > 0.95 else 5)
    return {"k": kernel, "s": rng.randint(1, 6), "p": rng.randint(0, kernel // 2), "d": rng.randint(1, 3)}


def has_taps(of: dict[str, int], windows: int, pixels: int) -> bool:
    starts = (window * of["s"] - of["p"] for window in range(windows))
    return windows > 0 and all(any(0 <= at + tap * of["d"] < pixels for tap in range(of["k"])) for at in starts)


def reach(of: dict[str, int]) -> int:
    return of["d"] * (of["k"] - 1) + 1


def pooled(of: dict[str, int], pixels: int) -> int:
    return (pixels + 2 * of["p"] - reach(of)) // of["s"] + 1


def under(rng: random.Random, of: dict[str, int], windows: int) -> int:
    """Pixels under windows: as pooling would have had them, a few off, or any number."""
    exact = (windows - 1) * of["s"] + reach(of) - 2 * of["p"] + rng.randrange(of["s"])
    return max(1, rng.choice((exact, exact, exact + rng.randint(-3, 3), size(rng))))


def sizes(rng: random.Random, op: str, down: dict[str, int], across: dict[str, int]) -> dict[str, int]:
    while True:
        n, c = rng.choice((0, *(1, 2, 3) * 8)), rng.choice((size(rng), 8 * rng.randint(1, 5)))
        if op == "pool":
            height, width = (max(1, reach(of) - 2 * of["p"] + size(rng) - 1) for of in (down, across))
            h, w = pooled(down, height), pooled(across, width)
            if not (has_taps(down, h, height) and has_taps(across, w, width)):
                continue
        else:
            h, w = size(rng), rng.choice((size(rng), 8 * rng.randint(1, 5)))
            height, width = under(rng, down, h), under(rng, across, w)
            if rng.random() < 0.04:
                h, w = rng.choice(((0, w), (h, 0)))
        if n * c * max(h * w, height * width) <= MOST:
            return {"n": n, "c": c, "h": h, "w": w, "H": height, "W": width}


def layouts(rng: random.Random, mixed: bool) -> dict[str, object]:
    """Gaps and offsets, of whole vectors or not. Indices lie as the windows' values do, but for gaps."""
    kinds = ("planar", "channels_last")
    coarse = rng.choice(kinds)
    fine = rng.choice(kinds) if mixed else coarse
    chosen: dict[str, object] = {}
    for image, layout in (("coarse", coarse), ("index", coarse), ("fine", fine)):
        chosen[f"{image}_layout"] = layout
        for key in ("pad", "offset", "gap") if layout == "planar" else ("pad", "offset"):
            if value := rng.choice((0, 0, 0, 16, rng.randint(1, 9))):
                chosen[f"{image}_{key}"] = min(value, 2) if key == "gap" else value
    return chosen


def draw(rng: random.Random) -> str:
    op = rng.choice(OPS)
    dtype = rng.choice(FLOATS if op.endswith("backward") else DTYPES)
    down, across = axis(rng), axis(rng)
    if rng.random() < 0.6:
        across = down
    # Only where values go up may the two images be of different layouts.
    options: dict[str, object] = {
        **sizes(rng, op, down, across),
        **layouts(rng, op in ("unpool", "flat") and rng.random() < 0.1),
    }
    if not op.startswith("flat"):
        options |= {name + "h": value for name, value in down.items()}
        options |= {name + "w": value for name, value in across.items()}
    if op == "pool":
        options["special"] = rng.randint(0, 1)
    else:
        options["bad"] = rng.choice((0, 1, 2, 5, 50))
    if op.startswith("unpool"):
        options["near"] = rng.randint(0, 1)
    if op.startswith("flat"):
        elements = options["H"] * options["W"]
        options["among"] = rng.choice((elements, rng.randint(1, elements)))
    if op in ("unpool", "flat"):
        options["record"] = int(rng.random() < 0.9)
    if op in ("unpool", "flat", "unpool_backward") and dtype in FLOATS:
        options["accumulate"] = rng.randint(0, 1)
    return case(op=op, dtype=dtype, **options, mode=rng.choice(MODES), seed=rng.getrandbits(31))
