from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simt.build import Kernels, build


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Callable[[str], Path]:
    """Builds a variant once."""
    done: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in done:
            done[variant] = build(variant, tmp_path_factory.mktemp(variant))
        return done[variant]

    return get


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
