from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simt.build import Kernels, build, once_a_run


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Callable[[str], Path]:
    """Builds a variant, once for all workers of a run."""
    return lambda variant: build(variant, once_a_run(tmp_path_factory, f"simt_{variant}"))


@pytest.fixture(scope="session")
def _plain(built) -> Kernels:
    return Kernels(built("plain"))


@pytest.fixture(scope="session")
def _race(built) -> Kernels:
    return Kernels(built("race"))


@pytest.fixture
def plain(_plain) -> Iterator[Kernels]:
    yield _plain
    _plain.schedule("uniform", 1)


@pytest.fixture
def race(_race) -> Iterator[Kernels]:
    yield _race
    _race.schedule("uniform", 1)


@pytest.fixture(params=["plain", "race"])
def kernels(request) -> Kernels:
    return request.getfixturevalue(request.param)
