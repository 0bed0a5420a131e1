"""Warp operations, barriers, shared memory, copies, launches: right results, and what is told where there are none."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from tests.simt.build import INVALID_CONFIGURATION, INVALID_VALUE, LAUNCH_FAILURE, MODES

TYPES = ("float32", "float64", "int32", "uint32", "int64")
NOTHING = {"f": np.isnan, "i": lambda x: x == -1, "u": lambda x: x == np.iinfo(x.dtype).max}


def line_of(marker: str) -> str:
    """file:line of a marked line of broken.cu"""
    from tests.simt.build import HERE

    lines = (HERE / "broken.cu").read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if marker in line)
    return f"broken.cu:{number}"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "argument"), [(0, 5), (1, 1), (1, 16), (2, 4)])
@pytest.mark.parametrize("leaving", [32, 20])
def test_shuffles(kernels, dtype, kind, argument, leaving):
    x = (np.arange(32) * 3 - (0 if dtype == "uint32" else 7)).astype(dtype)
    out = np.zeros(32, dtype)
    kernels.run("run_shuffle", TYPES.index(dtype), x, out, kind, argument, leaving)
    lane = np.arange(32)
    source = (np.full(32, argument), lane ^ argument, lane + argument)[kind]
    taken = lane < leaving
    known = taken & (source < leaving)
    assert np.array_equal(out[known], x[source[known]])
    assert NOTHING[out.dtype.kind](out[taken & ~known]).all()
    assert (out[~taken] == 0).all()


@pytest.mark.parametrize("leaving", [32, 20])
@pytest.mark.parametrize("votes", [0x00000000, 0xFFFFFFFF, 0x000FFFFF, 0x80000001, 0x12345678])
def test_votes(kernels, votes, leaving):
    bits = np.array([votes >> lane & 1 for lane in range(32)], np.uint8)
    out = np.zeros((32, 3), np.uint32)
    kernels.run("run_vote", bits, out, leaving)
    live = bits[:leaving]
    expected = (votes & ((1 << leaving) - 1), int(live.any()), int(live.all()))
    assert (out[:leaving] == expected).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_block_sums(kernels, mode, threads):
    kernels.schedule(mode, 5)
    x = np.random.default_rng(0).integers(-9, 10, (3, threads)).astype(np.float32)
    out = np.full(3, np.nan, np.float32)
    kernels.run("run_block_sum", x, out, 3, threads, 2)
    assert np.array_equal(out, x.sum(1))


@pytest.mark.parametrize("mode", MODES)
def test_integer_atomics(kernels, mode):
    kernels.schedule(mode, 5)
    x = np.random.default_rng(0).integers(0, 7, 500).astype(np.int32)
    counts, total = np.zeros(7, np.uint32), np.zeros(1, np.uint64)
    kernels.run("run_histogram", x, counts, total, 500, 7, 2, 64)
    assert np.array_equal(counts, np.bincount(x, minlength=7))
    assert total[0] == 500
    largest, wide = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    kernels.run("run_largest", x, largest, wide, 500, 2, 64)
    assert (largest[0], wide[0]) == (x.max(), int(x.max()) << 40)
    tickets = np.zeros(64, np.uint32)
    kernels.run("run_ticket", np.zeros(1, np.int32), tickets, 64)
    assert sorted(tickets) == list(range(64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_pipeline(kernels, mode, tiles):
    kernels.schedule(mode, 5)
    x = np.arange(tiles * 256, dtype=np.float32).reshape(tiles, 64, 4)
    out = np.full((64, 4), np.nan, np.float32)
    kernels.run("run_pipeline", x, out, tiles)
    assert np.array_equal(out, x.sum(0))


def test_copies_arrive_when_they_are_waited_for(kernels):
    x = np.arange(128, dtype=np.float32)
    before, after = np.zeros(128, np.float32), np.zeros(128, np.float32)
    kernels.run("run_async", x, before, after)
    assert np.isnan(before).all()
    assert np.array_equal(after, x)


@pytest.mark.parametrize("number", range(4))
def test_shared_memory_is_nan_in_each_block(kernels, number):
    out = np.zeros(6, ("float32", "float64", "float16", "uint16")[number])
    kernels.run("run_fresh", number, out, 3)
    assert np.isnan(out).all() if number < 3 else (out == 0xFFFF).all()


def test_indices_of_blocks(kernels):
    out = np.zeros((4, 3, 2, 3), np.uint32)
    kernels.run("run_index", out, 2, 3, 4)
    expected = [[[[x, y, z] for x in range(2)] for y in range(3)] for z in range(4)]
    assert np.array_equal(out, expected)


@pytest.mark.parametrize(("number", "digits"), [(0, 22), (1, 11), (2, 8)])
def test_arithmetic(kernels, number, digits):
    x = np.linspace(-3, 3, 32, dtype=np.float32)
    out = np.zeros((32, 2), np.float32)
    kernels.run("run_convert", number, x, out, 32)
    assert np.allclose(out[:, 0], 2.0**x, rtol=2.0**-digits)
    assert np.allclose(out[:, 1], np.log2(out[:, 0]), rtol=1e-6, atol=1e-7)


def large(kernels, dynamic: int, opt_in: int, use: bool = True) -> int:
    out = np.zeros(1, np.float32)
    return kernels.launch("run_large", out, ctypes.c_size_t(dynamic), ctypes.c_size_t(opt_in), use)


def test_48_kilobytes_of_shared_memory_unless_opted_in(built):
    # In a process of its own: an opt-in lasts.
    program = """
import sys
from pathlib import Path
from tests.simt.build import Kernels
from tests.simt.test_execution import large
kernels = Kernels(Path(sys.argv[1]))
def attempt(*arguments):
    print(large(kernels, *arguments), "49152" in kernels.report())
attempt(44 * 1024, 0)
attempt(44 * 1024 + 16, 0)
attempt(49 * 1024, 0)
attempt(49 * 1024, 49 * 1024)
attempt(44 * 1024, 228 * 1024)
attempt(50 * 1024, 49 * 1024)
"""
    done = subprocess.run([sys.executable, "-c", program, built("plain")], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "0 False",
        f"{INVALID_VALUE} True",  # with the 4 KB of the static array
        f"{INVALID_VALUE} True",
        "0 False",
        f"{INVALID_VALUE} False",  # OPT_IN_SHARED itself refuses what no device has
        f"{INVALID_VALUE} True",
    ], done.stderr


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_launches_that_no_device_takes(plain, blocks, threads):
    x = np.zeros(2048, np.float32)
    assert plain.launch("run_block_sum", x, x, blocks, threads, 1) == INVALID_CONFIGURATION
    assert "LAUNCH of block_sum_kernel" in plain.report()


@pytest.mark.parametrize("mode", MODES)
def test_barriers_on_different_lines(kernels, mode):
    kernels.schedule(mode, 5)
    assert kernels.launch("broken_divergent", np.zeros(64, np.int32), 64, 0) == LAUNCH_FAILURE
    for part in ("divergent_kernel, block (0, 0, 0)", line_of("// one line"), line_of("// another line")):
        assert part in kernels.report()


@pytest.mark.parametrize("mode", MODES)
def test_deadlock_tells_who_waits_where(kernels, mode):
    kernels.schedule(mode, 5)
    assert kernels.launch("broken_divergent", np.zeros(64, np.int32), 64, 1) == LAUNCH_FAILURE
    report = kernels.report()
    assert report.startswith("divergent_kernel, block (0, 0, 0): deadlock\n")
    waiting = next(line for line in report.splitlines() if "wait in SYNC_THREADS" in line)
    assert waiting.startswith("  threads 0-31: ")
    assert waiting.endswith(line_of("// waited for in vain"))
    assert "  threads 32-63: exited" in report
    # The next launch starts afresh.
    kernels.run("run_block_sum", np.ones(64, np.float32), np.zeros(1, np.float32), 1, 64, 1)


def test_warp_and_block_waiting_for_each_other(kernels):
    assert kernels.launch("broken_divergent", np.zeros(64, np.int32), 64, 3) == LAUNCH_FAILURE
    assert "  threads 5, 37: wait in SYNC_THREADS" in kernels.report()
    assert "  threads 0-4, 6-36, 38-63: wait in SYNC_WARP" in kernels.report()


def test_lanes_in_different_operations(kernels):
    assert kernels.launch("broken_divergent", np.zeros(64, np.int32), 64, 2) == LAUNCH_FAILURE
    for part in ("divergent warp", "shuffle", "vote", line_of("// even lanes"), line_of("// odd lanes")):
        assert part in kernels.report()


def test_lanes_at_different_lines(kernels):
    assert kernels.launch("broken_divergent", np.zeros(64, np.int32), 64, 4) == LAUNCH_FAILURE
    for part in ("divergent warp", line_of("// one shuffle"), line_of("// another shuffle")):
        assert part in kernels.report()


def test_misaligned_access_is_reported(kernels):
    x, out = np.zeros(8, np.float32), np.zeros(8, np.float32)
    assert kernels.launch("broken_vector", x[1:], out) == LAUNCH_FAILURE
    assert "is no multiple of 16" in kernels.report()
    assert "broken.cu" in kernels.report()
