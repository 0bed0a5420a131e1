"""Random cases for the drivers under sanitizers: ``python -m tests.ladder.fuzz [EXAMPLES] [--seed SEED]``.

The operators with a `fuzz` of their own (tests/ladder/operator.py) draw the cases, corrupt indices among them. Every
line that is not answered "ok" is printed and makes the exit status 1; the line alone repeats it, and so does the seed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ladder.driver import Drivers, failures
from tests.ladder.operator import Operator, operators

VARIANT = "asan"
#: Lines for one process, which the first finding of a sanitizer ends.
BATCH = 100


def fuzzed() -> list[Operator]:
    return [operator for operator in operators().values() if operator.fuzz is not None]


def lines(operator: Operator, seed: int, examples: int) -> list[str]:
    assert operator.fuzz is not None
    rng = random.Random(seed)
    return [operator.fuzz(rng) for _ in range(examples)]


def find(program: Path, cases: Sequence[str], jobs: int = 2) -> list[str]:
    """Case and answer wherever the answer is not "ok"."""
    batches = [cases[i : i + BATCH] for i in range(0, len(cases), BATCH)]
    with ThreadPoolExecutor(jobs) as pool:
        return [found for batch in pool.map(lambda batch: failures(program, batch), batches) for found in batch]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=int, nargs="?", default=10000, help="cases of each operator")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--line", help="run this case alone; needs --op where several operators are fuzzed")
    parser.add_argument("--op", choices=[operator.name for operator in fuzzed()], help="one operator")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    chosen = [operator for operator in fuzzed() if options.op in (None, operator.name)]
    if options.line and len(chosen) != 1:
        parser.error("--line needs --op")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for operator in chosen:
            program = Drivers(Path(folder), options.jobs)(operator, VARIANT)
            cases = [options.line] if options.line else lines(operator, seed, options.examples)
            began = time.perf_counter()
            wrong = find(program, cases, options.jobs)
            shown = "" if options.line else f" of seed {seed}"
            print(
                f"{operator.name}: {len(cases)} cases{shown}, {len(wrong)} wrong, {time.perf_counter() - began:.0f} s"
            )
            print("".join(f"- {case}\n" for case in wrong), end="", flush=True)
            found += wrong
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
