"""Plants bugs in the CUDA kernels and tells which rung catches each: ``python -m tests.ladder.mutants [--op NAME]``.

A rung is an operator's driver in one build of the host execution: 3 plain, 4 with every access checked, 5 under
sanitizers. Each mutant (tests/ladder/ops) names those that must catch it, and only they run; where one of them does
not, the exit status is 1. So it is where a mutant's text is not in the kernels as often as it says: the list follows
the kernels. ``--table`` runs nothing and prints what is expected, which is mutants.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.compare import table
from tests.ladder import driver
from tests.ladder.operator import ROOT, Mutant, Operator, operators

RUNGS = {3: "plain", 4: "race", 5: "asan"}
HEADER = ("operator", "mutant", "planted bug", "file", "3 plain", "4 race", "5 sanitizers")


@dataclasses.dataclass
class Finding:
    mutant: Mutant
    caught: dict[int, str]  # what each rung said, where it caught the mutant
    missed: list[int]

    @property
    def survived(self) -> bool:
        return not self.caught or bool(self.missed)


class Bench:
    """Everything that the mutants of an operator share, built once."""

    def __init__(self, operator: Operator, drivers: driver.Drivers, rungs: Iterable[int]) -> None:
        self.operator = operator
        self.drivers = drivers
        self.cases = driver.in_all_modes(operator.mutant_cases)
        self.rest: dict[int, list[Path]] = {}
        self.kernels: dict[int, dict[str, Path]] = {}
        for rung in sorted(rungs):
            variant = RUNGS[rung]
            place = drivers.folder / f"{operator.name}_{variant}"
            place.mkdir()
            self.rest[rung] = driver.compile_rest(operator, variant, place, drivers.workers)
            self.kernels[rung] = driver.compile_kernels(operator, variant, place, workers=drivers.workers)
            program = drivers.link(variant, [*self.kernels[rung].values(), *self.rest[rung]], place / "driver")
            if wrong := driver.failures(program, self.cases):
                raise RuntimeError(f"without a mutant, rung {rung} has failures:\n" + "\n".join(wrong))

    def judge(self, mutant: Mutant) -> Finding:
        place = Path(tempfile.mkdtemp(dir=self.drivers.folder))
        csrc = place / "csrc"
        for part in ("include", "cuda", "simt"):
            shutil.copytree(ROOT / "csrc" / part, csrc / part)
        mutant.apply(csrc)
        files = (mutant.file,) if mutant.file in self.operator.cuda else self.operator.cuda
        caught: dict[int, str] = {}
        for rung in self.rest:
            if rung not in mutant.rungs:
                continue
            variant = RUNGS[rung]
            changed = driver.compile_kernels(self.operator, variant, place, files, csrc, workers=1)
            objects = {**self.kernels[rung], **changed}
            program = self.drivers.link(variant, [*objects.values(), *self.rest[rung]], place / "driver")
            if wrong := driver.wrong(driver.run(program, self.cases, only_first=True, timeout=120)):
                caught[rung] = wrong[0].replace(f"{csrc}/", "")
        shutil.rmtree(place)
        return Finding(mutant, caught, [rung for rung in mutant.rungs if rung in self.rest and rung not in caught])


def judge(
    operator: Operator, mutants: Sequence[Mutant], jobs: int = 2, rungs: set[int] | None = None
) -> Iterator[Finding]:
    """What the rungs (default: all that a mutant needs) say of each mutant of an operator."""
    rungs = rungs or {rung for mutant in mutants for rung in mutant.rungs}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(Bench(operator, driver.Drivers(Path(folder), jobs), rungs).judge, mutants)


def expected() -> str:
    """The page that says what each mutant is, and which rungs catch it."""
    rows = [
        (operator.name, mutant.name, mutant.bug, mutant.file, *("caught" if r in mutant.rungs else "-" for r in RUNGS))
        for operator in operators().values()
        for mutant in operator.mutants
    ]
    about = (
        "# The planted bugs",
        "`make mutants` plants each of these into a copy of the source, builds the rungs that are to catch it and runs "
        'until one of its cases fails there. "-": that rung is not expected to see it. Written by '
        "`python -m tests.ladder.mutants --table`.",
        table(HEADER, rows),
    )
    return "\n\n".join(about)


def row(operator: Operator, finding: Finding) -> str:
    def cell(rung: int) -> str:
        if rung in finding.caught:
            return "caught"
        return "**MISSED**" if rung in finding.missed else "-"

    said = next((text for _, text in sorted(finding.caught.items(), reverse=True)), "**SURVIVED**")
    said = said[said.find("data race") :] if "data race" in said else said
    said = (said if len(said) <= 160 else said[:157] + "...").replace("|", "\\|")
    mutant = finding.mutant
    cells = (operator.name, mutant.name, mutant.bug, mutant.file, *(cell(rung) for rung in RUNGS), said)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=operators(), help="one operator; may be repeated")
    parser.add_argument("--only", action="append", metavar="NAME", help="one mutant; may be repeated")
    parser.add_argument("--table", action="store_true", help="print what is expected, and run nothing")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.table:
        print(expected())
        return 0
    chosen = [
        (operator, [mutant for mutant in operator.mutants if not options.only or mutant.name in options.only])
        for operator in operators().values()
        if not options.op or operator.name in options.op
    ]
    if not any(mutants for _, mutants in chosen):
        names = (mutant.name for operator in operators().values() for mutant in operator.mutants)
        parser.error("no such mutant; there are: " + ", ".join(names))
    print(f"| {' | '.join([*HEADER, 'the highest says'])} |\n{'|---' * (len(HEADER) + 1)}|")
    findings = []
    for operator, mutants in chosen:
        for finding in judge(operator, mutants, options.jobs) if mutants else ():
            findings.append(finding)
            print(row(operator, finding), flush=True)
    survivors = [finding.mutant.name for finding in findings if finding.survived]
    print(f"\n{len(findings)} mutants, {len(survivors)} not caught as they should be")
    print("".join(f"- {name}\n" for name in survivors), end="")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
