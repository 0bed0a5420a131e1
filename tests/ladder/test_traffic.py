"""What dice_ce_loss's kernels move, against what has to be moved; the table: ``python -m tests.ladder.traffic``."""

from __future__ import annotations

import pytest

from tests.ladder.traffic import Config, Traffic, measure

DTYPES = ("float32", "bfloat16")
#: Constants of the loss and sums of a chunk are a hundredth at most, in 32 chunks of 1024 pixels.
FLOOR = 1.05


@pytest.fixture(scope="module")
def traffic(dice_ce_loss_driver):
    def of(*config: object, **more: bool) -> dict[str, Traffic]:
        return measure(dice_ce_loss_driver("race"), Config(*config, **more))

    return of


def check(found: dict[str, Traffic], read: float, written: float, conflicts: dict[str, float]) -> None:
    forward, backward = found["forward"], found["backward"]
    assert 1 <= forward.read_ratio <= read
    assert 1 <= backward.read_ratio <= read
    assert 1 <= backward.written_ratio <= written
    for step, limit in conflicts.items():
        assert found[step].conflicts_per_request <= limit
    # A row of sums for each chunk of 1024 pixels.
    assert forward.written <= 0.05 * forward.read_floor
    assert found["combine"].read <= 0.05 * forward.read_floor
    assert found["combine"].conflicts == 0


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", [3, 19, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_registers_hold_all_classes(traffic, dtype, classes, layout):
    # Rows of two-byte elements share banks where they are no multiple of 16 bytes; labels and weights of eight pixels a
    # lane are read at twice the stride that the banks serve at once.
    conflicts = {"forward": 0.0, "backward": 0.0} if dtype == "float32" else {"forward": 0.25, "backward": 0.45}
    check(traffic(dtype, classes, layout), FLOOR, FLOOR, conflicts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_classes_are_read_twice(traffic, dtype):
    check(traffic(dtype, 150, "planar"), 2.0, FLOOR, {"forward": 0.07, "backward": 0.1})


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_classes_channels_last_are_staged(traffic, dtype):
    # A row of 150 floats is an even number of words: two lanes share a bank.
    check(traffic(dtype, 150, "channels_last"), FLOOR, FLOOR, {"forward": 0.45, "backward": 0.45})


@pytest.mark.parametrize(("dtype", "read", "written"), [("float32", 7.5, 8.0), ("bfloat16", 13.5, 16.0)])
def test_rows_that_begin_anywhere_go_by_elements(traffic, dtype, read, written):
    # Sectors of each request: neighbouring elements of a row come one after the other.
    check(traffic(dtype, 19, "channels_last", aligned=False), read, written, {"backward": 0.0})


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1.26), ("bfloat16", 1.51)])
@pytest.mark.parametrize("classes", [3, 19])
def test_planes_that_begin_anywhere_cost_a_sector_a_request(traffic, dtype, classes, limit):
    check(traffic(dtype, classes, "planar", aligned=False), limit, limit, {"backward": 0.0})
