from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.ladder.driver import Drivers
from tests.ladder.operator import Operator, operators
from tests.simt.build import once_a_run


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Drivers:
    return Drivers(once_a_run(tmp_path_factory, "drivers"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `operator` runs for each; with `cases`, `large` or `traffic`, for each of those of each.

    `sanitized` are all operators with --every-case, otherwise those that are fuzzed.
    """
    found = operators().values()
    for name in ("cases", "large", "traffic"):
        if name in metafunc.fixturenames:
            pairs = [(operator, *part) for operator in found for part in parts(operator, name)]
            ids = [f"{operator.name}-{shown}" for operator, shown, _ in pairs]
            metafunc.parametrize(("operator", name), [(operator, part) for operator, _, part in pairs], ids=ids)
            return
    if "operator" in metafunc.fixturenames:
        metafunc.parametrize("operator", found, ids=lambda operator: operator.name)
    if "sanitized" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-case")
        chosen = [operator for operator in found if every or operator.fuzz is not None]
        metafunc.parametrize("sanitized", chosen, ids=lambda operator: operator.name)


def parts(operator: Operator, name: str) -> Iterable[tuple[str, object]]:
    if name == "traffic":
        return ((traffic.shown, traffic) for traffic in operator.traffic)
    return getattr(operator, name).items()
