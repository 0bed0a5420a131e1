"""No kernel touches memory outside of its tensors (see `tests.triton.fenced`)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segops.triton import interpreting

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not interpreting(), reason="pages are fenced in the interpreter's memory")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.triton.fenced", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("side", ["after", "before"])
def test_kernels_stay_inside_their_tensors(side: str) -> None:
    done = run(side)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    parts = ("backward_sweep", "backward_tile", "statistics_sweep", "statistics_tile", "sums", "value")
    assert done.stdout.split() == [f"dice_ce_loss_{part}_kernel" for part in parts]


@pytest.mark.parametrize(
    ("side", "planted"), [("after", "neighbour"), ("before", "neighbour"), ("after", "pixels"), ("after", "classes")]
)
def test_the_fence_bites(side: str, planted: str) -> None:
    """A planted kernel that reads one element too far, and the real ones told of one pixel or class too many."""
    assert run(side, planted).returncode == -signal.SIGSEGV


def test_masked_elements_may_lie_outside() -> None:
    assert run("after", "none").returncode == 0
