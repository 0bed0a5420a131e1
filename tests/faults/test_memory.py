"""Memory that runs out: an error that says so, nothing written astray, nothing leaked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Every allocation of some size comes from the system, whose limit the child moves, and goes back to it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_operators_with_less_and_less_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.memory"],
        cwd=ROOT,
        env={**os.environ, **MALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    wrong = {name: counts["wrong"][:3] for name, counts in told["calls"].items() if counts["wrong"]}
    assert not wrong
    # With none and with plenty.
    assert all(counts["errors"] and counts["results"] for counts in told["calls"].values()), told
    assert told["growth"] < 1 << 20
