"""What the kernels move, against what has to be moved; the table: ``python -m tests.ladder.traffic``."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ladder.driver import Drivers
from tests.ladder.operator import Bytes, Moves, Operator, Traffic
from tests.ladder.traffic import Counted, broken, count


def test_kernels_keep_their_limits(drivers: Drivers, operator: Operator, traffic: Traffic) -> None:
    assert broken(traffic, count(drivers(operator, "race"), traffic.line)) == []


ONE = Traffic("one", "n=1", {"copy(_rows)?": Moves(Bytes(100, 1.1), Bytes(100), 0.5), "sum": Moves(Bytes(0), Bytes(8))})
COPY, SUM = Counted("copy_rows", 110, 100, 10, 15, 5), Counted("sum", 0, 8, 0, 0, 0)


def test_within_the_limits() -> None:
    assert broken(ONE, [COPY, SUM]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"read": 111}, "copy_rows, bytes read: 111, not in [100, 110]"),
        ({"read": 99}, "copy_rows, bytes read: 99, not in [100, 110]"),
        ({"written": 106}, "copy_rows, bytes written: 106, not in [100, 105]"),
        ({"conflicts": 6}, "copy_rows, conflicts: 0.600 > 0.5"),
        ({"kernel": "copy_all"}, "copy(_rows)? has not run"),
        ({"kernel": "copy_all"}, "no limit is stated for copy_all"),
    ],
)
def test_beyond_a_limit(change: dict[str, object], words: str) -> None:
    assert f"one: {words}" in broken(ONE, [dataclasses.replace(COPY, **change), SUM])  # type: ignore[arg-type]
