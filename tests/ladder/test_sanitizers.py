"""dice_ce_loss's kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""

from __future__ import annotations

from tests.ladder import cases, driver


def test_no_overrun_misalignment_or_overflow(dice_ce_loss_driver):
    lines = driver.in_turn(cases.every_template() + cases.every_option())
    assert driver.failures(dice_ce_loss_driver("asan"), lines, timeout=120) == []
