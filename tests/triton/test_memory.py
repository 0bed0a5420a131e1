"""No kernel touches memory outside of its tensors (see `tests.triton.fenced`)."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from segops.triton import interpreting
from tests.triton import calls, fenced

pytestmark = pytest.mark.skipif(not interpreting(), reason="pages are fenced in the interpreter's memory")


@pytest.fixture(scope="session")
def run() -> Iterator[fenced.Server]:
    server = fenced.Server()
    yield server
    server.close()


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("operator", calls.names())
def test_kernels_stay_inside_their_tensors(operator: str, side: str, run: fenced.Server) -> None:
    done = run(side, operator)
    assert done.status == 0, f"exit status {done.status}: {done.text[-2000:]}"
    assert done.text.split() == sorted(calls.kernels(operator)) != []


@pytest.mark.parametrize(
    "arguments", [(name, argument) for name in calls.names() for argument in calls.of(name).PLANTED]
)
def test_the_fence_bites(arguments: tuple[str, str], run: fenced.Server) -> None:
    """The kernels told of one pixel or class too many."""
    assert run("after", *arguments).status == -signal.SIGSEGV


@pytest.mark.parametrize("side", ["after", "before"])
def test_the_fence_is_next_to_the_tensor(side: str, run: fenced.Server) -> None:
    """A planted kernel that reads one element too far."""
    assert run(side, "neighbour").status == -signal.SIGSEGV


def test_masked_elements_may_lie_outside(run: fenced.Server) -> None:
    assert run("after", "none").status == 0


def test_an_exception_is_told(run: fenced.Server) -> None:
    done = run("after", "no_such_operator")
    assert done.status == 1
    assert "No module named 'segops.triton.no_such_operator'" in done.text
