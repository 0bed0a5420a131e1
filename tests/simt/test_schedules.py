"""Every order of threads finds missing synchronisation by wrong results alone, and can be chosen and repeated."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.simt.build import MODES

SEEDS = range(1, 9)


def block_sum(kernels, bug: int) -> bool:
    x, out = np.ones(256, np.float32), np.zeros(1, np.float32)
    kernels.run("broken_sum", bug, x, out, 256, 4)
    return out[0] == 256 * (1 + 2 + 3 + 4)


BUGS = {1: "barrier before read", 2: "barrier before rewrite", 3: "shuffle ends early"}


# Uniformly random choices keep threads too close together to run into a missing barrier before a rewrite.
@pytest.mark.parametrize(
    ("mode", "bug"), [(mode, bug) for mode in MODES for bug in BUGS if (mode, bug) != ("uniform", 2)], ids=str
)
def test_planted_bugs_are_found(plain, mode, bug):
    found = []
    for seed in SEEDS:
        plain.schedule(mode, seed)
        assert block_sum(plain, 0)
        if not block_sum(plain, bug):
            found.append(seed)
    assert found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bug", [1, 2], ids=["wait one group short", "no barrier after the wait"])
def test_planted_bugs_of_copies_are_found(plain, mode, bug):
    x = np.ones((4, 64, 4), np.float32)
    found = []
    for seed in SEEDS:
        plain.schedule(mode, seed)
        out = np.zeros(64, np.float32)
        plain.run("broken_pipeline", x, out, 4, 0)
        assert (out == 4).all()
        plain.run("broken_pipeline", x, out, 4, bug)
        if not (out == 4).all():
            found.append(seed)
    assert found


def order(kernels) -> list[int]:
    """The order in which the threads of two warps draw a number."""
    x, out = np.zeros(64, np.int32), np.zeros(64, np.uint32)
    kernels.run("run_ticket", x, out, 64)
    return out.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_orders_repeat_with_the_seed(plain, mode):
    orders = []
    for seed in (1, 1, 2):
        plain.schedule(mode, seed)
        orders.append([order(plain) for _ in range(3)])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][0] != orders[0][1]  # launches differ


def test_environment_chooses(built):
    program = """
import sys, ctypes, numpy as np
library = ctypes.CDLL(sys.argv[1])
library.simt_last_report.restype = ctypes.c_char_p
x, out = np.zeros(64, np.int32), np.zeros(64, np.uint32)
error = library.run_ticket(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), 64)
print(error, library.simt_last_report().decode(), out.tolist())
"""

    def run(mode: str, seed: int) -> str:
        environment = {**os.environ, "SEGOPS_SIMT_SCHEDULE": mode, "SEGOPS_SIMT_SEED": str(seed)}
        command = [sys.executable, "-c", program, str(built("plain"))]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run("warp", 1) == run("warp", 1)
    assert run("warp", 1) != run("warp", 2)
    assert run("warp", 1) != run("last", 1)
    assert "SEGOPS_SIMT_SCHEDULE=wrap: expected uniform, warp, priority or last" in run("wrap", 1)
