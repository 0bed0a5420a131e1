"""The race build: what it reports, at the first seed, and what it counts."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from tests.simt.build import LAUNCH_FAILURE, MODES, ROOT, SUCCESS, aligned

# Every finding must not depend on the order of threads.
every_mode = pytest.mark.parametrize("mode", MODES)


def expect_race(kernels, memory: str, *launch) -> None:
    assert kernels.launch(*launch) == LAUNCH_FAILURE
    report = kernels.report()
    assert f" of {memory}: " in report
    assert "data race on byte" in report
    assert report.count("broken.cu:") == 2, report


@every_mode
@pytest.mark.parametrize("bug", [1, 2], ids=["before read", "before rewrite"])
def test_missing_barrier(race, mode, bug):
    race.schedule(mode, 1)
    expect_race(race, "shared array 'part'", "broken_sum", bug, np.ones(64, np.float32), np.zeros(1, np.float32), 64, 2)


@every_mode
def test_lost_atomic(race, mode):
    race.schedule(mode, 1)
    x, out = np.arange(64, dtype=np.int32) % 8, np.zeros(8, np.uint32)
    expect_race(race, "shared array 'counts'", "broken_lost_atomic", x, out, 64)
    expect_race(race, "shared array 'counts'", "broken_early_atomic", x, out, 64)


@every_mode
def test_missing_barrier_after_the_wait_for_a_copy(race, mode):
    race.schedule(mode, 1)
    x, out = np.ones((3, 64, 4), np.float32), np.zeros(64, np.float32)
    race.run("broken_pipeline", x, out, 3, 0)
    expect_race(race, "shared array 'stage'", "broken_pipeline", x, out, 3, 2)


@every_mode
def test_lanes_of_a_warp(race, mode):
    race.schedule(mode, 1)
    out = np.zeros(32, np.int32)
    race.run("broken_exchange", out, True)
    assert np.array_equal(out, np.arange(32)[::-1])
    expect_race(race, "shared array 'tile'", "broken_exchange", out, False)


@pytest.mark.parametrize(("threads", "step"), [(32, 1), (128, 32)], ids=["lanes", "warps"])
def test_all_readers_count(race, threads, step):
    # Whichever thread comes last in this order: others have read before it, and it writes.
    race.schedule("last", 1)
    for writer in range(0, threads, step):
        expect_race(race, "shared array 'value'", "broken_readers", np.zeros(128, np.int32), threads, step, writer)


@every_mode
def test_copy_that_is_read_before_it_is_waited_for(race, mode):
    race.schedule(mode, 1)
    expect_race(race, "shared array 'stage'", "broken_early_read", np.ones(128, np.float32), np.zeros(32, np.float32))


def test_wait_one_group_short_is_seen_as_a_race_or_as_nan(race):
    x, out = np.ones((3, 64, 4), np.float32), np.zeros(64, np.float32)
    error = race.launch("broken_pipeline", x, out, 3, 1)
    assert error == LAUNCH_FAILURE or not (out == 3).all()


@every_mode
@pytest.mark.parametrize(("kind", "is_race"), enumerate([False, True, True, False, True, True]))
def test_races_of_blocks(race, mode, kind, is_race):
    race.schedule(mode, 1)
    out = np.zeros(5, np.uint32)
    with race.buffers(out=(out, True)):
        if is_race:
            expect_race(race, "buffer 'out'", "broken_blocks", out, 4, kind)
        else:
            race.run("broken_blocks", out, 4, kind)
        race.run("broken_blocks", out, 4, 0)  # launches are ordered


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((100, 0, 0), "read of 4 bytes at .*: 0 bytes past the end of buffer 'x' (400 bytes)"),
        ((-2, 0, 0), "read of 4 bytes at .*: 8 bytes before the start of buffer 'x' (400 bytes)"),
        ((0, 33, 0), "write of 4 bytes at .*: 4 bytes past the end of buffer 'out' (128 bytes)"),
        ((0, 0, 32), "read of 4 bytes at .*: 0 bytes past the end of shared array 'tile' (128 bytes)"),
    ],
)
def test_out_of_bounds(race, place, message):
    # In the middle of one allocation: nothing else notices.
    memory = np.zeros(4096, np.float32)
    x, out = memory[1000:1100], memory[2000:2032]
    with race.buffers(x=(x, False), out=(out, True)):
        race.run("broken_place", x, out, 99, 31, 31)
        assert race.launch("broken_place", x, out, *place) == LAUNCH_FAILURE
    before, after = message.split(".*")
    assert before in race.report()
    assert after in race.report()
    assert "broken.cu:" in race.report()


def test_vector_access_across_the_end(race):
    memory = aligned(16, "float32")
    x, out = memory[:6], memory[8:12]
    with race.buffers(x=(x, False), out=(out, True)):
        race.run("broken_vector", x, out)
        assert race.launch("broken_vector", x[4:], out) == LAUNCH_FAILURE
    assert "across the end of buffer 'x' (24 bytes)" in race.report()


def test_vector_access_across_the_end_of_a_shared_array(race):
    assert race.launch("broken_across", np.ones(1, np.float32)) == LAUNCH_FAILURE
    assert "across the end of shared array 'tile' (132 bytes)" in race.report()


def test_copies_by_memcpy(race):
    x, out = aligned(96, "float32"), aligned(96, "float32")
    x[:] = 1
    with race.buffers(x=(x, False), out=(out, True)):
        kernel = counts(race, "broken_copy", x, out, 3)
        # Rows of 12 bytes: three accesses of 4 each, of which each meets all sectors.
        assert kernel["global_read"] == {"requests": 3, "bytes": 384, "sectors": 36}
        assert kernel["global_write"] == {"requests": 6, "bytes": 768, "sectors": 72}
        assert all("broken.cu:" in site["place"] for site in kernel["sites"])
        assert (out == 1).all()
        assert race.launch("broken_copy", x, out, 4) == LAUNCH_FAILURE  # into the row of another thread


def test_write_to_an_input(race):
    x = np.zeros(32, np.float32)
    with race.buffers(x=(x, True)):
        race.run("broken_write_input", x, 32)
    x[:] = 5
    with race.buffers(x=(x, False)):
        assert race.launch("broken_write_input", x, 32) == LAUNCH_FAILURE
    assert "goes to buffer 'x', which is read-only" in race.report()
    assert (x == 5).all()


def test_read_only_path_of_memory_written_in_the_same_launch(race):
    assert race.launch("broken_stale", np.zeros(32, np.float32)) == LAUNCH_FAILURE
    assert "read-only load" in race.report()
    assert "write in the same launch" in race.report()


def test_global_access_to_shared_memory(race):
    assert race.launch("broken_space", np.zeros(32, np.float32)) == LAUNCH_FAILURE
    assert "goes to shared array 'tile'" in race.report()


def counts(kernels, *launch) -> dict:
    kernels.reset_counters()
    assert kernels.launch(*launch) == SUCCESS, kernels.report()
    (kernel,) = kernels.counters()
    return kernel


@pytest.mark.parametrize(
    ("size", "offset", "stride", "lanes", "sectors"),
    [
        (4, 0, 1, 32, 4),  # coalesced
        (4, 0, 2, 32, 8),  # stride 2
        (4, 0, 8, 32, 32),  # a sector each
        (4, 1, 1, 32, 5),  # unaligned
        (4, 0, 0, 32, 1),  # all the same
        (4, 0, 1, 20, 3),  # part of a warp
        (1, 0, 1, 32, 1),
        (1, 31, 1, 32, 2),
        (16, 0, 1, 32, 16),
    ],
)
def test_sectors_of_global_memory(race, size, offset, stride, lanes, sectors):
    x, out = aligned(1024, "uint8"), aligned(1024, "uint8")
    kernel = counts(race, "pattern_global", size, x, out, offset, stride, lanes)
    assert kernel["global_read"] == {"requests": 1, "bytes": size * lanes, "sectors": sectors}
    assert kernel["global_write"] == {"requests": 1, "bytes": size * lanes, "sectors": -(-size * lanes // 32)}
    assert kernel["launches"] == 1


@pytest.mark.parametrize(
    ("size", "columns", "write_wavefronts", "read_wavefronts"),
    [
        (4, 32, 1, 32),  # a column of a 32 x 32 tile: one bank
        (4, 33, 1, 1),  # padded
        (4, 34, 1, 2),
        (2, 32, 1, 16),  # rows of 64 bytes: two banks
        (2, 64, 1, 32),
        (8, 32, 2, 32),  # half warps: 16 rows of 256 bytes each
        (8, 33, 2, 2),
        (16, 32, 4, 32),  # quarter warps: 8 rows of 512 bytes each
        (16, 33, 4, 4),
    ],
)
def test_bank_conflicts(race, size, columns, write_wavefronts, read_wavefronts):
    kernel = counts(race, "pattern_column", size, aligned(1024, "uint8"), columns)
    phases = max(1, size // 4)
    assert kernel["shared_write"] == {
        "requests": 32,
        "bytes": 32 * 32 * size,
        "wavefronts": 32 * write_wavefronts,
        "conflicts": 0,
    }
    assert kernel["shared_read"] == {
        "requests": 1,
        "bytes": 32 * size,
        "wavefronts": read_wavefronts,
        "conflicts": read_wavefronts - phases,
    }


def test_counts_of_copies_matrices_and_atomics(race):
    x, out = aligned((3, 64, 4), "float32"), aligned(256, "float32")
    kernel = counts(race, "run_pipeline", x, out, 3)
    # Two warps; three tiles of 16 bytes a lane, copied in and read back.
    assert kernel["global_read"] == {"requests": 6, "bytes": 3072, "sectors": 96}
    assert kernel["shared_write"] == {"requests": 6, "bytes": 3072, "wavefronts": 24, "conflicts": 0}
    assert kernel["shared_read"] == {"requests": 6, "bytes": 3072, "wavefronts": 24, "conflicts": 0}

    kernel = counts(race, "run_ldmatrix", aligned(256, "uint16"), aligned(128, "uint32"), False)
    # Rows 48 bytes apart: eight of them are 16-byte places 0, 3, 6, ... of 8, which all differ.
    assert kernel["shared_read"] == {"requests": 1, "bytes": 512, "wavefronts": 4, "conflicts": 0}

    zeros, total = np.zeros(64, np.int32), np.zeros(1, np.uint64)
    kernel = counts(race, "run_histogram", zeros, np.zeros(4, np.uint32), total, 64, 4, 1, 64)
    assert kernel["shared_atomic"] == {"requests": 2, "bytes": 256}
    assert kernel["global_atomic"] == {"requests": 3, "bytes": 64 * 8 + 4 * 4}


@every_mode
def test_counts_do_not_depend_on_the_order(race, mode):
    x, out = aligned(256, "float32"), aligned(1, "float32")
    race.schedule("warp", 1)
    expected = counts(race, "run_block_sum", x, out, 1, 256, 3)
    race.schedule(mode, 7)
    assert counts(race, "run_block_sum", x, out, 1, 256, 3) == expected


def test_counts_name_lines(race):
    kernel = counts(race, "pattern_column", 4, aligned(32, "float32"), 32)
    assert kernel["kernel"] == "column_kernel<T>"
    assert "T = float" in kernel["launcher"]
    assert race.launch("broken_pipeline", aligned(768, "float32"), aligned(64, "float32"), 3, 0) == SUCCESS
    assert [kernel["kernel"] for kernel in race.counters()] == ["column_kernel<T>", "pipeline_kernel<0, true>"]
    (read,) = (site for site in kernel["sites"] if site["memory"] == "shared" and site["access"] == "read")
    assert "broken.cu:" in read["place"]
    assert read["conflicts"] == 31


def test_two_million_accesses_take_seconds(race):
    blocks, rounds = 8, 1000
    x, out = aligned(blocks * 128 * rounds, "float32"), aligned(blocks * 128 * rounds, "float32")
    x[:] = 1
    with race.buffers(x=(x, False), out=(out, True)):
        start = time.perf_counter()
        race.run("pattern_many", x, out, blocks, rounds)
        seconds = time.perf_counter() - start
    assert (out == 1).all()
    assert seconds < 20


def test_integer_overflow_ends_the_process(built) -> None:
    """Not as a report: the compiler's own check, for what no access shows."""
    program = f"""
import numpy as np
from tests.simt.build import Kernels
Kernels({str(built("race"))!r}).run("broken_overflow", np.array([2**31 - 1], np.int32))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "broken.cu" in done.stderr
    assert "signed integer overflow" in done.stderr
