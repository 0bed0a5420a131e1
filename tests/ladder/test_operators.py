"""No operator is left out of the ladder."""

from __future__ import annotations

import re

import pytest

from tests.ladder.gpu import SELECTIONS
from tests.ladder.operator import ROOT, Operator, operators
from tests.test_build import OPS

KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\([^{;]*?\)\s+)?(\w+?)(?:_kernel)?\(")


@pytest.mark.parametrize("name", OPS)
def test_every_operator_climbs_every_rung(name: str) -> None:
    assert name in operators(), f"tests/ladder/ops/{name}.py states nothing"
    operator = operators()[name]
    for rung in ("cpu", "cuda", "cases", "traffic", "mutants", "mutant_cases", "limits"):
        assert getattr(operator, rung), f"{name} has no {rung}"
    assert any(part in name for part in SELECTIONS), f"SELECTIONS of tests/ladder/gpu.py has no tests of {name}"


def test_files_are_there(operator: Operator) -> None:
    assert operator.driver.is_file()
    assert all((ROOT / "csrc/cpu" / name).is_file() for name in operator.cpu)
    assert all((ROOT / "csrc/cuda" / name).is_file() for name in operator.cuda)


def test_the_traffic_of_every_kernel_is_limited(operator: Operator) -> None:
    written = {kernel for name in operator.cuda for kernel in KERNEL.findall((ROOT / "csrc/cuda" / name).read_text())}
    limited = {pattern for traffic in operator.traffic for pattern in traffic.kernels}
    assert written
    unlimited = {kernel for kernel in written if not any(re.fullmatch(pattern, kernel) for pattern in limited)}
    assert not unlimited, f"no traffic is stated for {sorted(unlimited)}"


def test_every_file_of_kernels_belongs_to_an_operator() -> None:
    own = {name for operator in operators().values() for name in operator.cuda}
    others = {path.name for path in (ROOT / "csrc/cuda").glob("*.cu")} - own - {"bad_data.cu", "library.cu"}
    assert not others, f"no operator of tests/ladder/ops has {sorted(others)} in its `cuda`"
