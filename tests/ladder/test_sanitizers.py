"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""

from __future__ import annotations

from tests.ladder.driver import Drivers, failures, in_turn
from tests.ladder.operator import Operator


def test_no_overrun_misalignment_or_overflow(drivers: Drivers, sanitized: Operator) -> None:
    lines = in_turn(line for group in sanitized.cases.values() for line in group)
    assert failures(drivers(sanitized, "asan"), lines, timeout=600) == []
