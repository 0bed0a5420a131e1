"""Ctrl-C and termination: asked for by a signal, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds in which a signal is still the same wish. torchrun passes on to its processes what it gets itself, and a
#: terminal or the manager of a cluster sends it to all of them.
_SAME = 2.0


class Interruption:
    """Attributes: signal: the number of the one that came, or 0."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Let the first SIGINT or SIGTERM be noted only; one that comes two seconds later or more acts as always.

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

    since = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        now = time.monotonic()
        if not interruption.signal:
            interruption.signal, since = number, now
        elif now - since > _SAME:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        restore()


def ignore(worker: int) -> None:
    """For processes that read images: a terminal's Ctrl-C reaches them too, and the training process ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
