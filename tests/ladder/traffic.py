"""What the CUDA kernels move, counted by the host execution: ``python -m tests.ladder.traffic [--op NAME]``.

Sectors of 32 bytes are counted request by request, as the memory system sees them before any cache: what a warp reads
twice counts twice, and a row that begins within a sector costs that sector at both of its ends. The floor is what has
to be moved. Bank conflicts are wavefronts of shared memory beyond the first of a request (of a half or a quarter of it
for accesses of 8 and 16 bytes). Cases, floors and limits are the operators' (tests/ladder/ops); the exit status is 1 if
a limit is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.compare import table
from tests.ladder import driver
from tests.ladder.operator import Bytes, Moves, Traffic, operators

SECTOR = 32


@dataclasses.dataclass(frozen=True)
class Counted:
    """What one kernel has moved in a case; bytes are those of whole sectors."""

    kernel: str
    read: int
    written: int
    requests: int  # of shared memory, reads and writes
    wavefronts: int
    conflicts: int

    @property
    def conflicts_per_request(self) -> float:
        return self.conflicts / self.requests if self.requests else 0.0


def count(program: Path, line: str) -> list[Counted]:
    """Each kernel of a case, whatever its template arguments: what its launches have moved together."""
    found: dict[str, Counted] = {}
    for counts in driver.counters(program, line):
        name = counts["kernel"].strip("()").partition("<")[0].removesuffix("_kernel")
        shared = [counts["shared_read"], counts["shared_write"]]
        numbers = (
            SECTOR * counts["global_read"]["sectors"],
            SECTOR * counts["global_write"]["sectors"],
            *(sum(part[key] for part in shared) for key in ("requests", "wavefronts", "conflicts")),
        )
        if name in found:
            before = dataclasses.astuple(found[name])[1:]
            numbers = tuple(a + b for a, b in zip(before, numbers, strict=True))
        found[name] = Counted(name, *numbers)
    return list(found.values())


def limits(traffic: Traffic, counted: Sequence[Counted]) -> list[Moves | None]:
    """What each kernel may move, or None where the case says nothing of it."""
    return [next((m for k, m in traffic.kernels.items() if re.fullmatch(k, c.kernel)), None) for c in counted]


def broken(traffic: Traffic, counted: Sequence[Counted]) -> list[str]:
    """One line for each limit that a case breaks; less than the floor is a wrong floor or a wrong count."""
    found = [
        f"{kernel} has not run"
        for kernel in traffic.kernels
        if not any(re.fullmatch(kernel, c.kernel) for c in counted)
    ]
    for kernel, moves in zip(counted, limits(traffic, counted), strict=True):
        if moves is None:
            found.append(f"no limit is stated for {kernel.kernel}")
            continue
        for what, moved, allowed in (("read", kernel.read, moves.read), ("written", kernel.written, moves.written)):
            if not allowed.floor <= moved <= allowed.limit:
                found.append(f"{kernel.kernel}, bytes {what}: {moved}, not in [{allowed.floor}, {allowed.limit:.0f}]")
        if kernel.conflicts_per_request > moves.conflicts:
            found.append(f"{kernel.kernel}, conflicts: {kernel.conflicts_per_request:.3f} > {moves.conflicts}")
    return [f"{traffic.shown}: {line}" for line in found]


HEADER = ("kernel", "case", "read, bytes", "/ floor", "written, bytes", "/ floor", "shared wavefronts")
HEADER += ("conflicts per request",)


def rows(traffic: Traffic, counted: Sequence[Counted]) -> Iterator[tuple[str, ...]]:
    def ratio(moved: int, allowed: Bytes | None) -> str:
        return f"{moved / allowed.floor:.3f}" if allowed and allowed.floor else "-"

    for kernel, moves in zip(counted, limits(traffic, counted), strict=True):
        read, written = (moves.read, moves.written) if moves else (None, None)
        yield (
            kernel.kernel,
            traffic.shown,
            str(kernel.read),
            ratio(kernel.read, read),
            str(kernel.written),
            ratio(kernel.written, written),
            str(kernel.wavefronts),
            f"{kernel.conflicts_per_request:.3f}",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=operators(), help="one operator; may be repeated")
    chosen = parser.parse_args().op or list(operators())
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        drivers = driver.Drivers(Path(folder))
        for operator in map(operators().get, chosen):
            program = drivers(operator, "race")
            counted = [(traffic, count(program, traffic.line)) for traffic in operator.traffic]
            lines = [row for traffic, kernels in counted for row in rows(traffic, kernels)]
            print(f"{operator.name}\n\n{table(HEADER, lines)}\n", flush=True)
            problems += [f"{operator.name}, {line}" for pair in counted for line in broken(*pair)]
    print("\n".join(["Broken limits:", *problems]) if problems else "All limits hold.")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
