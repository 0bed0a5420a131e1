"""Fixtures of the operators' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile as in a new process, before and after: neither graphs nor a stance are left to other tests."""
    import torch  # not before the tests' environment is set

    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()
