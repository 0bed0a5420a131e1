"""Every access of the CUDA kernels checked, for races, bounds and alignment, and their arithmetic for overflow.

In one of four orders of the threads for each case, with --every-case in all: what is seen of an access does not depend
on them, what is computed may.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.ladder.driver import Drivers, failures, in_all_modes, in_turn
from tests.ladder.operator import Operator


def test_cases(drivers: Drivers, operator: Operator, cases: Sequence[str], every_case: bool) -> None:
    assert failures(drivers(operator, "race"), (in_all_modes if every_case else in_turn)(cases)) == []


def test_large_cases(drivers: Drivers, operator: Operator, large: Sequence[str]) -> None:
    assert failures(drivers(operator, "race"), in_turn(large)) == []


def test_a_driver_knows_its_keys(drivers: Drivers, operator: Operator) -> None:
    """A misspelled option would make a case of something else."""
    program = drivers(operator, "race")
    assert failures(program, ["no_such_key=1"]) == ["no_such_key=1: unknown key: no_such_key"]
    assert failures(program, ["mode=none"]) == ["mode=none: unknown mode: none"]
