"""Random cases, corrupt indices among them, under sanitizers. Many more: ``make fuzz``."""

from __future__ import annotations

import pytest

from tests.ladder.driver import Drivers
from tests.ladder.fuzz import VARIANT, find, fuzzed, lines
from tests.ladder.operator import Operator
from tests.ladder.ops import max_unpool_cases, max_unpool_fuzz

SEED, EXAMPLES = 1, 1000


@pytest.mark.parametrize("fuzzed", fuzzed(), ids=lambda operator: operator.name)
def test_nothing_is_written_astray_and_every_bad_index_is_recorded(drivers: Drivers, fuzzed: Operator) -> None:
    assert find(drivers(fuzzed, VARIANT), lines(fuzzed, SEED, EXAMPLES)) == [], f"seed {SEED}"


def test_max_unpool_is_fuzzed_all_over() -> None:
    (operator,) = (operator for operator in fuzzed() if operator.name == "max_unpool")
    drawn = lines(operator, SEED, EXAMPLES)
    assert drawn == lines(operator, SEED, EXAMPLES)
    assert len(set(drawn)) == EXAMPLES
    values: dict[str, set[str]] = {}
    for line in drawn:
        for key, value in (word.split("=") for word in line.split()):
            values.setdefault(key, set()).add(value)
    assert values["op"] == set(max_unpool_fuzz.OPS)
    assert values["dtype"] == set(max_unpool_cases.DTYPES)
    assert values["bad"] == {"0", "1", "2", "5", "50"}
    assert all(values[key] == {"0", "1"} for key in ("accumulate", "record", "near", "special"))
    assert all(len(values[f"{image}_layout"]) == 2 for image in ("coarse", "index", "fine"))
