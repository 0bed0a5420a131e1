"""Every access of the CUDA kernels checked: races, bounds, alignment, in four orders of the threads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.ladder.driver import Drivers, failures, in_turn
from tests.ladder.operator import Operator
from tests.simt.build import MODES


@pytest.mark.parametrize("mode", MODES)
def test_cases(drivers: Drivers, operator: Operator, cases: Sequence[str], mode: str) -> None:
    assert failures(drivers(operator, "race"), [f"{line} mode={mode}" for line in cases]) == []


def test_large_cases(drivers: Drivers, operator: Operator, large: Sequence[str]) -> None:
    assert failures(drivers(operator, "race"), in_turn(large)) == []


def test_a_driver_knows_its_keys(drivers: Drivers, operator: Operator) -> None:
    """A misspelled option would make a case of something else."""
    program = drivers(operator, "race")
    assert failures(program, ["no_such_key=1"]) == ["no_such_key=1: unknown key: no_such_key"]
    assert failures(program, ["mode=none"]) == ["mode=none: unknown mode: none"]
