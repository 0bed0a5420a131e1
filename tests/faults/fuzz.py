"""Random calls of every operator's public function, the CPU library under sanitizers.

``python -m tests.faults.fuzz [EXAMPLES] [--variant asan|tsan] [--op OP] [--seed SEED]`` builds the library and runs the
calls of each function in processes of their own, each at one of the instruction sets in turn, and before them calls
that several threads share. A call gives what the
reference gives, or a TypeError, ValueError or RuntimeError that says which argument is wrong; everything else, a
sanitizer's report first of all, is printed and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Stands for the calls of tests.faults.large, whose work is shared out: random calls are too small for that.
LARGE = "large"


def child(name: str, examples: int, seed: int, note: str) -> int:
    """Runs calls of a function, or of all of them, and prints the instruction set and how many there were.

    The call that runs is noted in a file, for the case that it does not come back.
    """
    import hypothesis
    import torch
    from hypothesis import HealthCheck, given, settings

    from segops._library import cpu_unavailable, native
    from tests.faults import large
    from tests.faults.check import check
    from tests.faults.draw import FUNCTIONS, Call, calls

    assert cpu_unavailable is None, cpu_unavailable
    torch.set_num_threads(3)
    ran = 0

    with open(note, "w") as file:

        def told(call: object) -> None:
            nonlocal ran
            ran += 1
            file.seek(0)
            file.truncate()
            file.write(str(call))
            file.flush()

        def fuzz(name: str) -> None:
            @hypothesis.seed(seed)
            @settings(
                max_examples=examples, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck), phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            )  # fmt: skip
            @given(calls(name))
            def run(call: Call) -> None:
                told(call)
                check(call)

            run()

        def share_out() -> None:
            for what, call in large.calls().items():
                told(what)
                call()

        try:
            if name == LARGE:
                share_out()
            else:
                for one in FUNCTIONS if name == "all" else (name,):
                    fuzz(one)
        except BaseException as error:
            print(f"{Path(note).read_text()}\n    {type(error).__name__}: {str(error)[:1500]}")
            return 1
    print(native.cpu_isa() if native else "", ran)
    return 0


def main() -> int:
    from tests.faults.sanitized import environment, package

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=int, nargs="?", default=10000, help="calls of each function")
    parser.add_argument("--variant", default="asan", choices=("asan", "tsan"))
    parser.add_argument("--op", action="append", help="a function; may be repeated")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", nargs=4, metavar=("NAME", "EXAMPLES", "SEED", "NOTE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, examples, seed, note = options.child
        return child(name, int(examples), int(seed), note)

    from segops._library import native
    from tests.faults.draw import FUNCTIONS

    home = package(options.variant, ROOT / "build/faults", options.jobs)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    levels = native.cpu_isas() if native else ["baseline"]
    shares = [(name, i) for name in options.op or (LARGE, *FUNCTIONS) for i in range(len(levels))]

    def run(share: tuple[str, int]) -> tuple[str, int, int, str, float]:
        name, i = share
        count = options.examples // len(levels) + (i < options.examples % len(levels))
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "call"
            command = [sys.executable, "-m", "tests.faults.fuzz", "--child", name, str(count), str(seed + i), str(note)]
            done = subprocess.run(
                command,
                cwd=home,
                env=environment(options.variant, home, SEGOPS_CPU_ISA=levels[i], OMP_WAIT_POLICY="passive"),
                capture_output=True,
                text=True,
                check=False,
            )
            told = done.stdout.strip()
            if done.returncode == 0:
                return name, i, int(told.split()[-1]), "", time.perf_counter() - began
            if done.returncode != 1:
                told = f"{note.read_text() if note.exists() else ''}\n{done.stderr[-6000:]}"
            return name, i, count, f"exit status {done.returncode}: {told}", time.perf_counter() - began

    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, i, count, wrong, seconds in pool.map(run, shares):
            print(f"{name} {levels[i]}: {count} calls of seed {seed + i}, {seconds:.0f} s", wrong, flush=True)
            failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
