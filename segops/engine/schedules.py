"""The learning rate as a function of the step: nothing to keep, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "poly": lambda done, power: (1 - done) ** power,
    "cosine": lambda done, power: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done, power: 1.0,
}
"""From the share of steps done after the warm-up, in [0, 1), and a power, to a factor of the peak."""


def factor(schedule: str, step: int, steps: int, warmup: int = 0, power: float = 0.9) -> float:
    """What multiplies the peak learning rate at a step.

    Args:
        schedule: "poly": (1 - t) ** power (Liu, Rabinovich, Berg, "ParseNet", 2015); "cosine": half a cosine to zero
            (Loshchilov and Hutter, "SGDR", 2017); "constant".
        step: counted from 0.
        steps: of the whole training; t goes from 0, after the warm-up, to 1 at `steps`, which is no step any more.
        warmup: steps of a linear rise from 1 / warmup to the peak.
        power: of "poly".
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return SCHEDULES[schedule](min(done, 1.0), power)
