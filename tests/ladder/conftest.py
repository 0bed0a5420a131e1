from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ladder import driver


@pytest.fixture(scope="session")
def dice_ce_loss_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the driver of dice_ce_loss in a variant, once."""
    done: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in done:
            done[variant] = driver.build(variant, tmp_path_factory.mktemp(f"driver_{variant}"))
        return done[variant]

    return get
