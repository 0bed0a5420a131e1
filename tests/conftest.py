"""Options and fixtures of the whole suite. Nothing imports torch before the environment is as the tests need it."""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

#: Every backend has its turn; one that cannot run here skips with the reason that segops itself gives.
BACKENDS = ("native", "reference", "simt", "triton")

# The same examples in every run; `--hypothesis-profile=explore` draws new ones and more of them.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors of the op tests live")
    parser.addoption(
        "--every-case",
        action="store_true",
        help="run device code whole (long): all cases in Triton's interpreter, of the ladder all orders of threads,"
        " sanitizers and architectures",
    )
    parser.addoption(
        "--every-export",
        action="store_true",
        help="export a network of every family and compile every network (minutes), not some",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A choice made in the caller's shell would change what "automatic" means in every test.
    os.environ.pop("SEGOPS_BACKEND", None)
    # Spinning threads take the cores from each other where several processes share them, and tests are many small ops.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Workers that share the cores do not share each with threads of the others; what threads change is tested as such.
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))
    if config.getoption("--device") == "cpu":
        # Triton decides when a kernel is decorated, that is when segops is imported, whether to interpret it.
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.parallel import Units

    return Units(config, log) if config.getoption("dist") == "loadscope" else None


_TRITON_SHARE = 25  # one case in so many


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of each test's cases in Triton's interpreter, which needs a tenth of a second a call, keep a fixed share.

    The first of a test is among them, so that every test has its turn.
    """
    if config.getoption("--every-case") or config.getoption("--device") != "cpu":
        return
    kept, left_out, seen = [], [], set()
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None or "triton" not in (callspec.params.get("backend"), callspec.params.get("kernel_backend")):
            kept.append(item)
            continue
        test = item.nodeid.partition("[")[0]
        if test in seen and zlib.crc32(item.nodeid.encode()) % _TRITON_SHARE:
            left_out.append(item)
        else:
            seen.add(test)
            kept.append(item)
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device type of ``--device``."""
    name = request.config.getoption("--device")
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip(f"--device cuda: torch {torch.__version__} finds no CUDA device")
    return name


@pytest.fixture(scope="session")
def every_case(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--every-case")


@pytest.fixture(scope="session")
def architectures(every_case: bool) -> tuple[int, ...]:
    """Those that machine code is looked at for."""
    from tests.ladder.triton_sass import ARCHITECTURES

    return ARCHITECTURES if every_case else (90,)


def _available(backend: str, device: str) -> str:
    from segops import backends

    reason = backends.reason_unavailable(backend, device)
    if reason is not None:
        pytest.skip(f"{_BACKEND} {backend} on {device}: {reason}")
    return backend


_BACKEND = "backend"


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest, device: str) -> str:
    """Each backend that can run on `device`."""
    return _available(request.param, device)


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name != "reference"])
def kernel_backend(request: pytest.FixtureRequest, device: str) -> str:
    """Each backend with kernels of its own: for the grids of shapes and layouts that mean nothing to the reference."""
    return _available(request.param, device)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give all skips of one backend one place, so that the summary tells each reason once."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and f"Skipped: {_BACKEND} " in report.longrepr[2]:
        report.longrepr = (__file__, 1, report.longrepr[2])
    return report


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_left_on_a_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a device has not told yet is told to the test that it belongs to, not to the next one."""
    yield
    if request.config.getoption("--device") == "cuda":
        import segops

        segops.check_errors()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Every allocation on the CPU comes filled with bytes 0xff: NaN in each floating type, -1 in each integer type.

    torch.utils.deterministic.fill_uninitialized_memory does this for ATen's own torch.empty only, not for tensors that
    an extension allocates; glibc does it for everybody.
    """
    m_perturb, all_ones_inverted = -6, 0x100  # glibc fills with the lowest byte of ~value, and does nothing for 0
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        pytest.skip("memory is poisoned with glibc's mallopt, which this platform does not have")
    mallopt(m_perturb, all_ones_inverted)
    yield
    mallopt(m_perturb, 0)
