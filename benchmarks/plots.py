"""Plots of stored results for the documentation: each contender's time as a multiple of segops', case by case."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.compare import contenders, place

MARKERS = "osD^vPX*<>hd"


def svg(records: Sequence[dict[str, Any]]) -> bytes:
    """Dots on a logarithmic axis; on its line at 1, a contender takes as long as segops."""
    figure = Figure(figsize=(9, 1.4 + 0.27 * len(records)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(records))
    for number, name in enumerate(contenders(records)):
        found = [(r["contenders"].get(name, {}).get("ratio"), row) for row, r in zip(rows, records, strict=True)]
        ratios, at = zip(*[(ratio, row) for ratio, row in found if ratio is not None] or [((), ())], strict=True)
        axes.plot(ratios, at, MARKERS[number % len(MARKERS)], label=name, markersize=5, alpha=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_yticks(rows, [row_name(record) for record in records], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_xlabel("time as a multiple of segops' (right of the line: segops is faster)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "segops", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def row_name(record: dict[str, Any]) -> str:
    where, direction = place(record)
    part = record["op"].partition(", ")[2]
    if record["op"].endswith(("backward", "grad_input")):  # a derivative alone, which its name tells
        direction = ""
    return f"{part}  {where}  {direction}".strip()
