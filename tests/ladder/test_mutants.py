"""A few of the planted bugs, to keep the runner alive; all of them: ``python -m tests.ladder.mutants``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.ladder.mutants import expected, judge
from tests.ladder.operator import ROOT, Mutant, operators

#: The operator whose kernels compile fastest; its mutants here are those of one rung each, and of both.
NEAREST = operators()["upsample_nearest"]
FEW = ("the row before", "a whole vector at the row's end", "rows that are no whole vectors")
MUTANTS = [mutant for operator in operators().values() for mutant in operator.mutants]


def test_a_few_are_caught_and_what_is_no_bug_survives() -> None:
    few = [mutant for mutant in NEAREST.mutants if mutant.name.endswith(FEW)]
    assert len(few) == len(FEW)
    harmless = dataclasses.replace(few[0], name="harmless", replacement=few[0].text + "\n")
    *caught, survivor = judge(NEAREST, [*few, harmless], rungs={3, 4})
    assert [finding.mutant.name for finding in caught if not finding.survived] == [mutant.name for mutant in few]
    assert survivor.survived
    assert survivor.caught == {}


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_is_in_the_kernels(mutant: Mutant) -> None:
    assert (ROOT / "csrc/cuda" / mutant.file).read_text().count(mutant.text) == mutant.count
    assert mutant.rungs
    assert mutant.replacement != mutant.text


def test_the_page_lists_them_all() -> None:
    """If not: python -m tests.ladder.mutants --table > tests/ladder/mutants.md"""
    assert Path(__file__).with_name("mutants.md").read_text() == expected() + "\n"
