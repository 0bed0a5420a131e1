"""Ctrl-C and termination: asked for by a signal, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Attributes: signal: the number of the one that came, or 0."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Let the first SIGINT or SIGTERM be noted only; a second one acts as always.

    Python delivers signals to the main thread alone: in another one nothing is deferred.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        restore()


def ignore(worker: int) -> None:
    """For processes that read images: a terminal's Ctrl-C reaches them too, and the training process ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
