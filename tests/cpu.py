"""Threads and instruction sets of a CPU: results on any number of the one, and processes with each of the other."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """torch has so many threads inside, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_threads_change_nothing(run: Callable[[], Iterable[Tensor]], *numbers: int) -> None:
    """run() has the same bits with each of the numbers of threads; by itself the tests may have one."""
    results = []
    for number in numbers:
        with threads(number):
            results.append(tuple(run()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def words_with_instruction_set(level: str, *arguments: object) -> list[str]:
    """What another Python with these arguments prints, whose kernels are those of one instruction set."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "SEGOPS_CPU_ISA": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()
