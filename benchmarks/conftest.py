"""Collects bench_*.py, fixes threads and allocator regime, and stores the machine with the numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import environment, interleave

ENVIRONMENT = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("segops benchmarks")
    group.addoption("--bench-threads", type=int, default=2, help="threads of PyTorch and segops (2)")
    group.addoption("--bench-laps", type=int, default=7, help="laps over the contenders, at least (7)")
    group.addoption("--bench-seconds", type=float, default=20.0, help="time more laps while these last (20)")
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu", help="where the tensors live (cpu)")
    group.addoption("--bench-only", default="", metavar="REGEX", help="contenders beside segops, by name (all)")


def pytest_configure(config: pytest.Config) -> None:
    try:
        environment.regime()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    device = config.getoption("--bench-device")
    if device == "cuda" and not (torch.cuda.is_available() or config.option.collectonly):
        raise pytest.UsageError(f"--bench-device cuda: torch {torch.__version__} finds no CUDA device")
    config.addinivalue_line("python_files", "bench_*.py")
    # A backend forced in the caller's shell would be timed under the name of the native one.
    os.environ.pop("SEGOPS_BACKEND", None)
    torch.set_num_threads(config.getoption("--bench-threads"))
    config.stash[ENVIRONMENT] = environment.describe(device)


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.benchmark(timer=interleave.replay_clock))
    # Compiling the peers takes minutes on a slow machine.
    item.add_marker(pytest.mark.timeout(0))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    # The results are published: no host names, and the instruction set says what the list of flags would.
    machine_info.pop("node", None)
    machine_info.get("cpu", {}).pop("flags", None)
    machine_info["segops"] = config.stash[ENVIRONMENT]


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info["project"] = "segops"


@pytest.fixture
def bench_device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--bench-device")


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any, bench_device: str) -> Callable[..., None]:
    """:func:`benchmarks.interleave.race` with the options of the command line."""
    option = request.config.getoption
    effort = interleave.Effort(option("--bench-laps"), option("--bench-seconds"), option("--bench-only"))
    regime = environment.regime() if bench_device == "cpu" else bench_device
    return partial(interleave.race, benchmark, effort, regime=regime)
