"""No kernel touches memory outside of its tensors (see `tests.triton.fenced`)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segops.triton import interpreting
from tests.triton import calls

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not interpreting(), reason="pages are fenced in the interpreter's memory")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.triton.fenced", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("operator", calls.names())
def test_kernels_stay_inside_their_tensors(operator: str, side: str) -> None:
    done = run(side, operator)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout.split() == sorted(calls.kernels(operator)) != []


@pytest.mark.parametrize(
    "arguments", [(name, argument) for name in calls.names() for argument in calls.of(name).PLANTED]
)
def test_the_fence_bites(arguments: tuple[str, str]) -> None:
    """The kernels told of one pixel or class too many."""
    assert run("after", *arguments).returncode == -signal.SIGSEGV


@pytest.mark.parametrize("side", ["after", "before"])
def test_the_fence_is_next_to_the_tensor(side: str) -> None:
    """A planted kernel that reads one element too far."""
    assert run(side, "neighbour").returncode == -signal.SIGSEGV


def test_masked_elements_may_lie_outside() -> None:
    assert run("after", "none").returncode == 0
