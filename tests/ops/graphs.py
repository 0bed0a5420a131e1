"""What operators promise of torch.compile, torch.export and torch.func."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

T = TypeVar("T")


def assert_compiled_once(
    step: Callable[..., tuple[Tensor, ...]],
    parameter: Tensor,
    inputs: Iterable[tuple[Tensor, ...]],
    rtol: float,
    atol: float,
) -> None:
    """`step` is one graph for inputs of all sizes: its results, and the derivative of the first, are the eager ones."""
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for arguments in inputs:
        results = []
        for run in (step, compiled):
            value, *others = run(*arguments)
            results.append((value.detach(), *others, *torch.autograd.grad(value, parameter)))
        for eager, same in zip(*results, strict=True):
            assert torch.allclose(same, eager, rtol=rtol, atol=atol)
        torch.compiler.set_stance("fail_on_recompile")


def reloaded(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """The module of a program that has been saved and loaded."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def unless_refused(run: Callable[[], T], words: str = "vmap|functorch transforms|torch.func") -> T | None:
    """What a transform of torch.func gives, or None where it is refused in these words."""
    try:
        return run()
    except (RuntimeError, NotImplementedError) as error:
        assert re.search(words, str(error)), f"unclear: {error}"  # noqa: PT017
        return None


def assert_forward_mode_is_refused(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """A tangent that is silently dropped would be a derivative of zero."""
    with pytest.raises((RuntimeError, NotImplementedError), match=r"forward|jvp"):
        torch.func.jvp(function, (x,), (x,))
