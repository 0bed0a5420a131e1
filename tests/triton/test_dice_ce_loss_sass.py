"""Limits on the machine code of dice_ce_loss's Triton kernels, for each architecture, compiled without a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ladder.triton_sass import kernels
from tests.triton.calls_dice_ce_loss import CASES

#: The kernels that read or write the logits, and the most registers that leave 16 warps a multiprocessor.
STREAMING = ("statistics_tile", "statistics_sweep", "backward_tile", "backward_sweep")
MOST_REGISTERS = 128

ROWS_EACH = 3 * len(CASES) + 1

pytestmark = pytest.mark.timeout(1800)  # compiling all kernels, on a slow machine


@pytest.fixture(scope="module")
def rows(architectures: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for row in kernels(architectures):
        if row["op"] != "dice_ce_loss" or row["case"].startswith("coarse"):
            continue  # coarse logits are gathered: their registers are limited in tests/ladder/ops/dice_ce_loss.py
        if "BLOCK_C" in row["options"]:  # a kernel that streams logits: those of a thread at a time, and their accesses
            elements = row["options"]["BLOCK_C"] * row["options"]["BLOCK_P"] // row["threads"]
            row = row | {"elements": elements, "logits128": elements * row["element_size"] // 16}
        rows.append(row)
    return rows


def failing(rows: list[dict[str, Any]], part: str, limit: Any) -> list[dict[str, Any]]:
    return [row for row in rows if part in row["kernel"] and not limit(row)]


def test_everything_was_compiled(rows: list[dict[str, Any]], architectures: tuple[int, ...]) -> None:
    assert [row["arch"] for row in rows] == [arch for arch in architectures for _ in range(ROWS_EACH)]
    assert {row["kernel"] for row in rows} == {f"dice_ce_loss_{part}_kernel" for part in (*STREAMING, "sums", "value")}


@pytest.mark.parametrize("part", [*STREAMING, "sums"])
def test_no_spills_and_no_subroutines(part: str, rows: list[dict[str, Any]]) -> None:
    """Not so for the loss from its sums: its float64 divisions are subroutines, in one program of few numbers."""
    assert not failing(rows, part, lambda row: row["spill_bytes"] == row["stack"] == row["call"] == 0)
    assert not failing(rows, part, lambda row: row["registers"] <= MOST_REGISTERS)


def test_128_bit_accesses(rows: list[dict[str, Any]]) -> None:
    """Of logits wherever 16 bytes of them lie together and aligned: planar, or in a multiple of 16 classes."""
    wide = [row for row in rows if "planar" in row["case"] or "32 classes, channels_last" in row["case"]]
    assert len(wide) > len(rows) / 2
    for part in STREAMING:
        assert not failing(wide, part, lambda row: row["ldg128"] >= row["logits128"] > 0)
    for part in ("backward_tile", "backward_sweep"):
        assert not failing(wide, part, lambda row: row["stg128"] == row["stg"] > 0)


def test_16_bit_numbers_are_not_computed_with(rows: list[dict[str, Any]]) -> None:
    assert not failing(rows, "", lambda row: row["narrow_math"] == 0)


def test_one_exponential_an_element(rows: list[dict[str, Any]]) -> None:
    """The hardware's 2^x once for each element of a tile, and a few functions for each pixel."""
    for part in ("statistics_tile", "backward_tile"):
        assert not failing(rows, part, lambda row: row["elements"] <= row["mufu"] <= row["elements"] * 2 + 16)
