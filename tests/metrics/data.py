"""Real maps for the tests of the metrics; absent ones skip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

#: Folder with camvid/ and salient/: SEGOPS_TEST_DATA, or next to the repository.
DATA = Path(os.environ.get("SEGOPS_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def files(pattern: str, count: int) -> list[Path]:
    """`count` files of the pattern, spread over all there are."""
    found = sorted(DATA.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {DATA} (set SEGOPS_TEST_DATA)")
    return found[:: max(len(found) // count, 1)][:count]


def grey(path: Path) -> np.ndarray:
    """The values of an image with one channel, uint8 [H, W]."""
    image = pytest.importorskip("PIL.Image")
    with image.open(path) as opened:
        return np.array(opened if opened.mode in ("L", "P") else opened.convert("L"))
