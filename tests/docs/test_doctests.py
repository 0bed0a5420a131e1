"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator

import pytest
import torch

import segops
from tests.test_build import ROOT


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for path in sorted((ROOT / "segops").rglob("*.py")):
        if ">>> " in path.read_text():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found = finder.find(importlib.import_module(name), name, globs={"segops": segops, "torch": torch})
            yield from (test for test in found if test.examples)


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example: doctest.DocTest) -> None:
    failures: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("name", segops.ops.__all__)
def test_every_operator_has_an_example(name: str) -> None:
    assert name in {example.name.rpartition(".")[2] for example in EXAMPLES}
