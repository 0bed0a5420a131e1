"""A few of tests.ladder.mutants' planted bugs, to keep it alive; all of them: ``python -m tests.ladder.mutants``."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ladder.mutants import MUTANTS, judge
from tests.simt.build import ROOT

FEW = ("tables read at once", "gradient's weight of another class", "store of a whole tile")


def test_a_few_are_caught_and_what_is_no_bug_survives():
    few = [mutant for mutant in MUTANTS if mutant.name in FEW]
    harmless = dataclasses.replace(few[0], name="harmless", replacement=few[0].text + "\n")
    *caught, survivor = judge([*few, harmless], rungs={3, 4})
    assert [finding.mutant.name for finding in caught if not finding.survived] == [mutant.name for mutant in few]
    assert survivor.survived
    assert survivor.caught == {}


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_is_in_the_kernels(mutant):
    assert (ROOT / "csrc/cuda" / mutant.file).read_text().count(mutant.text) == mutant.count
