"""Random calls without sanitizers: what `make fuzz` does at length (tests/faults/fuzz.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import segops
from segops._library import native
from tests.cpu import words_with_instruction_set
from tests.faults.check import Wrong, check
from tests.faults.draw import FUNCTIONS, WITHOUT_STRIDES, Call, Draw, calls


@st.composite
def good(draw: Draw, name: str) -> dict[str, Any]:
    return FUNCTIONS[name](draw, False)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_answers(name: str) -> None:
    @settings(max_examples=40)
    @given(calls(name))
    def run(call: Call) -> None:
        check(call)

    run()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_without_strides_are_refused(name: str) -> None:
    @settings(max_examples=10)
    @given(good(name))
    def run(arguments: dict[str, Any]) -> None:
        function = getattr(segops, name)
        try:
            function(**arguments)
        except ValueError:  # such as an image that is too small
            return
        for key, value in arguments.items():
            first = value[0] if isinstance(value, list) else value
            for make in WITHOUT_STRIDES if isinstance(first, Tensor) else ():
                wrong = [make(first), *value[1:]] if isinstance(value, list) else make(value)
                with pytest.raises(TypeError, match=rf"segops\.\w+: {key}(\[0\])? must be a dense tensor, got "):
                    function(**{**arguments, key: wrong})

    run()


def test_every_function_of_an_operator_is_called() -> None:
    undrawn = set(segops.ops.__all__) - set(FUNCTIONS)
    assert not undrawn, f"FUNCTIONS of tests/faults/draw.py has no calls of {sorted(undrawn)}"


#: This process has the best one.
LOWER = [level for level in native.cpu_isas() if level != native.cpu_isa()] if native else []


@pytest.mark.parametrize("level", LOWER)
def test_every_instruction_set_answers(level: str, tmp_path: Path) -> None:
    fuzz = ("-m", "tests.faults.fuzz", "--child", "all", 10, 1, tmp_path / "call")
    assert words_with_instruction_set(level, *fuzz) == [level, str(10 * len(FUNCTIONS))]


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (lambda x: x + 1e-3, "an element differs"),
        (lambda x: x.double(), "float64"),
        (lambda x: x * torch.where(x == 0, -1, 1), "sign"),
    ],
)
def test_wrong_answers_are_seen(monkeypatch, planted, message) -> None:
    function = segops.bed_of_nails2d

    def wrong(*args, backend=None, **options):
        result = function(*args, backend=backend, **options)
        return planted(result) if backend is None else result

    monkeypatch.setattr(segops, "bed_of_nails2d", wrong)
    with pytest.raises(Wrong, match=message):
        check(Call("bed_of_nails2d", {"input": torch.ones(1, 2, 3, 4), "scale": 2}))
    monkeypatch.setattr(segops, "bed_of_nails2d", lambda *args, **options: torch.ones(2).view(3))
    with pytest.raises(Wrong, match="unclear"):
        check(Call("bed_of_nails2d", {"input": torch.ones(1, 2, 3, 4), "scale": 2}))
