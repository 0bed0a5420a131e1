"""Adds the records of a run to stored ones: ``python -m benchmarks.store RUN.json benchmarks/results/recycled.json``.

For one operator that is new or has changed; ``make bench`` measures all of them anew. A record takes the place of the
one of the same name. Numbers of another machine, regime or number of threads do not belong into one file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: What must be the same, as keys of a file's "machine_info".
SAME = (("machine",), ("cpu", "brand_raw"), ("segops", "regime"), ("segops", "threads"), ("segops", "isa"))


def merged(stored: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """`stored` with the records of `run`.

    Raises:
        ValueError: they were measured on different machines, or in different ways.
    """
    for keys in SAME:
        old, new = stored["machine_info"], run["machine_info"]
        for key in keys:
            old, new = old.get(key), new.get(key)
        if old != new:
            raise ValueError(f"{' '.join(keys)} is {new} in the run and {old} in what is stored: make bench, then")
    records = {record["name"]: record for record in (*stored["benchmarks"], *run["benchmarks"])}
    return {**stored, "benchmarks": list(records.values())}


def main(run: str, stored: str) -> None:
    path = Path(stored)
    result = merged(json.loads(path.read_text()), json.loads(Path(run).read_text()))
    path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
