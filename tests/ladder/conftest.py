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

    Without --every-case, `sanitized` are the operators that are fuzzed, and of `traffic` there is a case in each layout
    for all the kernels that run together.
    """
    found = operators().values()
    every = metafunc.config.getoption("--every-case")
    for name in ("cases", "large", "traffic"):
        if name in metafunc.fixturenames:
            pairs = [(operator, *part) for operator in found for part in parts(operator, name, every)]
            ids = [f"{operator.name}-{shown}" for operator, shown, _ in pairs]
            metafunc.parametrize(("operator", name), [(operator, part) for operator, _, part in pairs], ids=ids)
            return
    if "operator" in metafunc.fixturenames:
        metafunc.parametrize("operator", found, ids=lambda operator: operator.name)
    if "sanitized" in metafunc.fixturenames:
        chosen = [operator for operator in found if every or operator.fuzz is not None]
        metafunc.parametrize("sanitized", chosen, ids=lambda operator: operator.name)


def parts(operator: Operator, name: str, every: bool) -> Iterable[tuple[str, object]]:
    if name == "traffic":
        firsts = {(*t.kernels, "channels_last" in t.line): t for t in reversed(operator.traffic)}
        chosen = operator.traffic if every else firsts.values()
        return ((traffic.shown, traffic) for traffic in chosen)
    return getattr(operator, name).items()
