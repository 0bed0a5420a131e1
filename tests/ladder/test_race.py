"""Every access of dice_ce_loss's kernels checked: races, bounds, alignment, in four orders of the threads."""

from __future__ import annotations

import pytest

from tests.ladder import cases, driver
from tests.simt.build import MODES


@pytest.mark.parametrize("mode", MODES)
def test_every_kernel_template(dice_ce_loss_driver, mode):
    lines = [f"{line} mode={mode}" for line in cases.every_template()]
    assert driver.failures(dice_ce_loss_driver("race"), lines) == []


def test_every_option(dice_ce_loss_driver):
    assert driver.failures(dice_ce_loss_driver("race"), driver.in_all_modes(cases.every_option())) == []


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("classes", [3, 40])
def test_several_images_of_several_chunks(dice_ce_loss_driver, layout, classes):
    shape = {"c": classes, "n": 2, "s": 2048 + 57 if classes == 3 else 1024 + 57, "layout": layout}
    lines = driver.in_turn(
        driver.case(dtype=dtype, **shape, ignore=0.1, weight=1, confusion=1, map=1, bad=501, offset=offset)
        for dtype in cases.DTYPES
        for offset in (0, 1)
    )
    assert driver.failures(dice_ce_loss_driver("race"), lines) == []


@pytest.mark.parametrize("shape", [{"n": 0, "s": 5}, {"n": 2, "s": 0}])
def test_nothing_to_do(dice_ce_loss_driver, shape):
    assert driver.failures(dice_ce_loss_driver("race"), [driver.case(**shape, confusion=1, map=1)]) == []
