"""Everything there is to run on a GPU, in one command and one folder: `make gpu`, or ``python -m tests.ladder.gpu``.

The tests with ``--device cuda``, compute-sanitizer on a small selection of them, and the benchmarks. Every part runs,
whatever became of the one before; summary.md tells how each went. ``--dry-run`` goes through all parts without a GPU:
it checks that commands, files and selections of tests exist, and writes a summary of recorded results.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import table

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).with_name("gpu_sample")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: Of tests/ops for compute-sanitizer, which makes kernels a hundred times slower: each path through the kernels once.
#: By a part of the names of the kernels that are watched.
SELECTIONS = {
    "dice_ce_loss": "(native or triton) and (test_one_pixel_one_row_and_prime_sizes or test_map or test_parts or "
    "test_bad_labels_that_do_not_raise_are_ignored)",
    "dice_bce_loss": "dice_bce_loss and (native or triton) and (test_dtypes_and_layouts or test_infinite_logits)",
    "upsample": "upsample and (native or triton) and (test_layouts or test_cat or test_memory_format or "
    "(test_elements_and_gradient and contiguous))",
    "max_": "max_unpool and (native or triton) and (test_round_trip or test_flat_indices_may_be_any or "
    "test_what_is_bad_is_counted)",
    "confusion_matrix": "confusion_matrix and (native or triton) and (test_every_tail or test_bad_data_counts_nowhere)",
    "dilated_conv": "dilated_conv and (native or triton) and (test_layouts or test_gradients_of_a_convolution)",
}
PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"
#: Of these backends at least one test must have passed, or nothing was proved.
ON_THE_DEVICE = ("native", "triton")
MOST_NAMES = 50


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: of its log and of its row in the summary.
        command: the first word is found on the PATH; "{folder}" stands for the report's.
        judge: tells from the exit status, the folder and the log what came of it: a state and a line of detail.
        optional: whether it may be left out where the program is not installed.
        collects: whether it runs pytest, so that a dry run collects instead.
        minutes: after which it has failed.
        environment: variables beside the caller's.
    """

    name: str
    command: tuple[str, ...]
    judge: Callable[[int, Path, str], tuple[str, str]]
    optional: bool = False
    collects: bool = False
    minutes: int = 60
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    part: Part
    state: str
    detail: str
    seconds: float


def by_status(status: int, folder: Path, log: str) -> tuple[str, str]:
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    return (PASSED, "") if status == 0 else (FAILED, f"exit status {status}: {last}")


def by_junit(status: int, folder: Path, log: str) -> tuple[str, str]:
    """Passed only if tests of both backends have really run on the device."""
    path = folder / "tests.xml"
    if not path.exists():
        return FAILED, f"exit status {status}, and no tests.xml"
    counts, names = read_junit(path)
    detail = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    ran = [name for name in names["passed"] if name.startswith("tests.ops.")]
    idle = [b for b in ON_THE_DEVICE if not any(re.search(rf"::.*[\[-]{b}[\]-]", name) for name in ran)]
    if idle:
        return FAILED, f"{detail}; no test of {' and '.join(idle)} has run"
    failed = bool(status or counts["failed"] or counts["error"])
    return (FAILED if failed else PASSED), detail


def by_sanitizer(status: int, folder: Path, log: str) -> tuple[str, str]:
    """Passed only if tests have run under the sanitizer, all passed, and it tells of no error."""
    summaries = re.findall(r"={9} ((?:ERROR|RACECHECK) SUMMARY: .*)", log)
    if not summaries:
        return FAILED, f"exit status {status}, and no summary of errors"
    ran = re.search(r"\b\d+ passed\b", log)
    clean = all(re.search(r": 0 (?:errors|hazards)", line) for line in summaries)
    detail = "; ".join([*dict.fromkeys(summaries), ran.group() if ran else "no test passed"])
    return (PASSED if clean and ran and status == 0 else FAILED), detail


def parts() -> list[Part]:
    """All commands, in the order they run in."""
    pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    query = "name,driver_version,compute_cap,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"
    clocks = ("nvidia-smi", f"--query-gpu={query},power.limit,temperature.gpu,ecc.mode.current", "--format=csv")
    configuration = "import segops, torch; print(segops.show_config()); print(torch.__config__.show())"
    bench = (*pytest, "benchmarks", "--bench-device", "cuda", "--benchmark-json={folder}/benchmarks.json")
    tests = (*pytest, "tests", "--device", "cuda", "--junitxml={folder}/tests.xml")
    found = [
        Part("device", clocks, by_status, optional=True),
        Part("configuration", (sys.executable, "-c", configuration), by_status),
        Part("tests", tests, by_junit, collects=True, minutes=240),
    ]
    for tool, (kernels, selection) in itertools.product(SANITIZERS, SELECTIONS.items()):
        options = ("--tool", tool, "--kernel-regex", f"kns={kernels}", "--error-exitcode", "9")
        command = ("compute-sanitizer", *options, *pytest, "tests/ops", "--device", "cuda", "-k", selection)
        # Tensors that share one allocation would hide a step from one into the next.
        environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
        found.append(Part(f"{tool}-{kernels}", command, by_sanitizer, True, True, 90, environment))
    return [
        *found,
        Part("benchmarks", bench, by_status, collects=True, minutes=120),
        Part("tables", (sys.executable, "-m", "benchmarks.compare", "{folder}/benchmarks.json"), by_status),
        Part("device-afterwards", clocks, by_status, optional=True),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ladder.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("segops-gpu-report"), help="of the report")
    parser.add_argument("--dry-run", action="store_true", help="check everything that can be checked without a GPU")
    options = parser.parse_args(arguments)
    if options.dry_run:
        return dry_run()
    import torch

    if not torch.cuda.is_available():
        print(f"make gpu: torch {torch.__version__} finds no CUDA device (--dry-run needs none)", file=sys.stderr)
        return 2
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return run_all(parts(), folder)


def run_all(chosen: Sequence[Part], folder: Path) -> int:
    """Run every part and write the summary after each, so that an interrupted run leaves one. 1 if any failed."""
    outcomes: list[Outcome] = []
    for part in chosen:
        print(f"{part.name}: {shown(part, folder)}", flush=True)
        outcomes.append(run(part, folder))
        print(f"    {outcomes[-1].state} {outcomes[-1].detail}", flush=True)
        (folder / "summary.md").write_text(summary(outcomes, folder))
    print(f"The report is {folder / 'summary.md'}")
    return int(any(outcome.state == FAILED for outcome in outcomes))


def run(part: Part, folder: Path) -> Outcome:
    if part.optional and shutil.which(part.command[0]) is None:
        return Outcome(part, LEFT_OUT, f"{part.command[0]} is not installed", 0.0)
    log = folder / f"{part.name}.log"
    begun = time.monotonic()
    with log.open("w") as stream:
        try:
            status = subprocess.run(
                words(part, folder),
                cwd=ROOT,
                env=environment_of(part),
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=60 * part.minutes,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Outcome(part, FAILED, f"not done after {part.minutes} minutes", time.monotonic() - begun)
        except OSError as error:
            return Outcome(part, FAILED, str(error), 0.0)
    return Outcome(part, *part.judge(status, folder, log.read_text(errors="replace")), time.monotonic() - begun)


def words(part: Part, folder: Path) -> list[str]:
    return [word.replace("{folder}", str(folder)) for word in part.command]


def shown(part: Part, folder: Path) -> str:
    variables = [f"{name}={value}" for name, value in part.environment]
    return " ".join([*variables, shlex.join(words(part, folder))])


def environment_of(part: Part) -> dict[str, str]:
    """The caller's, without what would change which kernels run or how the tests are collected."""
    changing = ("SEGOPS_", "TRITON_INTERPRET", "MALLOC_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changing)}
    return kept | dict(part.environment)


def summary(outcomes: Sequence[Outcome], folder: Path) -> str:
    """The page that says how each part went, with the device, the failed tests and the tables of the benchmarks."""
    rows = [(o.part.name, o.state, f"{o.seconds:.0f}", o.detail.replace("|", "\\|")) for o in outcomes]
    failed = [o.part.name for o in outcomes if o.state == FAILED]
    parts_of_page = ["# segops on a GPU", f"Failed: {', '.join(failed)}." if failed else "No part failed."]
    parts_of_page.append(table(("part", "result", "seconds", "detail"), rows))
    for name, heading in (("device", "Device"), ("configuration", "Configuration")):
        if text := _log(folder, name):
            parts_of_page += [f"## {heading}", f"```\n{text}\n```"]
    if (path := folder / "tests.xml").exists():
        _, names = read_junit(path)
        broken = [*names["failed"], *names["error"]]
        if broken:
            shown_names = "\n".join(f"* `{name}`" for name in broken[:MOST_NAMES])
            more = f"\n* and {len(broken) - MOST_NAMES} more: tests.xml" if len(broken) > MOST_NAMES else ""
            parts_of_page += ["## Tests that failed", shown_names + more]
    if any(o.part.name == "tables" and o.state == PASSED for o in outcomes):
        parts_of_page += ["## Benchmarks", _log(folder, "tables")]
    return "\n\n".join(parts_of_page) + "\n"


def _log(folder: Path, name: str) -> str:
    path = folder / f"{name}.log"
    return path.read_text(errors="replace").strip() if path.exists() else ""


def read_junit(path: Path) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Counts and names of the tests by what became of them."""
    names: dict[str, list[str]] = {"passed": [], "failed": [], "error": [], "skipped": []}
    for case in ElementTree.parse(path).iter("testcase"):
        tags = {child.tag for child in case}
        state = next(
            (s for s, tag in (("failed", "failure"), ("error", "error"), ("skipped", "skipped")) if tag in tags), ""
        )
        names[state or "passed"].append(f"{case.get('classname')}::{case.get('name')}")
    return {state: len(found) for state, found in names.items()}, names


def dry_run() -> int:
    """Print every command and what a machine without a GPU can tell about it. 1 if one could not work."""
    problems = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = parts()
        collections = collect([part for part in chosen if part.collects], folder)
        for part in chosen:
            print(f"{part.name}: {shown(part, Path('segops-gpu-report'))}")
            for line, fine in check(part, collections):
                print(f"    {line}")
                problems += not fine
        print("summary.md, from recorded results:")
        line, fine = check_summary(folder)
        print(f"    {line}")
        problems += not fine
    print("dry run: " + (f"{problems} problem(s)" if problems else "everything is in place"))
    return int(problems > 0)


def check(part: Part, collections: dict[str, tuple[int, str]]) -> list[tuple[str, bool]]:
    """Lines about a part, each with whether it is fine; `collections` is what `collect` has found."""
    program = part.command[0]
    lines: list[tuple[str, bool]] = []
    if shutil.which(program) is None:
        absent = "is not installed here: the part would be left out" if part.optional else "does not exist"
        lines.append((f"{program} {absent}", part.optional))
    if part.collects:
        lines.append(collected(*collections[part.name]))
    elif "-c" in part.command:
        status, log = _capture(part.command)
        lines.append(("runs", True) if status == 0 else (f"exit status {status}: {log.strip()}", False))
    elif "-m" in part.command:
        module = part.command[part.command.index("-m") + 1]
        status, log = _capture((sys.executable, "-m", module, "--help"))
        lines.append((f"{module} is there", True) if status == 0 else (f"{module}: {log.strip()}", False))
    return lines or [(f"{program} is there", True)]


#: Runs pytest for each of several lists of arguments in one process: what the tests import is imported once.
_COLLECT = """
import contextlib, io, json, sys, pytest
answers = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as log, contextlib.redirect_stderr(log):
        status = int(pytest.main([*arguments, "--collect-only", "-q"]))
    answers.append((status, log.getvalue()))
print("answers:", json.dumps(answers))
"""
_ANSWERS = "answers:"


def collect(chosen: Sequence[Part], folder: Path) -> dict[str, tuple[int, str]]:
    """By the parts' names, how pytest ends that only collects what their own commands select, and what it says."""
    words_of = {part.name: words(part, folder) for part in chosen}
    # What comes before pytest is a sanitizer; parts that differ by it alone select the same.
    asked = {name: command[command.index("pytest") + 1 :] for name, command in words_of.items()}
    distinct = list(dict.fromkeys(tuple(arguments) for arguments in asked.values()))
    status, log = _capture((sys.executable, "-c", _COLLECT, json.dumps(distinct)))
    answers = json.loads(log.partition(_ANSWERS)[2].splitlines()[0]) if status == 0 else [(status, log)] * len(distinct)
    found = dict(zip(distinct, answers, strict=True))
    return {name: found[tuple(arguments)] for name, arguments in asked.items()}


def collected(status: int, log: str) -> tuple[str, bool]:
    """How many tests were selected."""
    found = re.search(r"^(\d+)(?:/\d+)? tests? collected", log, re.MULTILINE)
    if status or not found:
        lines = [line for line in log.splitlines() if "error" in line.lower()] or log.splitlines()
        return f"selects no test: exit status {status}, {lines[-1] if lines else ''}", False
    return f"selects {found.group(1)} tests", True


def check_summary(folder: Path) -> tuple[str, bool]:
    """Whether recorded results of every part are judged as they were recorded, and make a summary."""
    shutil.copytree(SAMPLE, folder, dirs_exist_ok=True)
    status, log = _capture((sys.executable, "-m", "benchmarks.compare", str(folder / "benchmarks.json")))
    (folder / "tables.log").write_text(log)
    outcomes = []
    for part in parts():
        judged = part.judge(status if part.name == "tables" else 0, folder, _log(folder, part.name))
        outcomes.append(Outcome(part, *judged, 1.0))
    page = summary(outcomes, folder)
    missing = [words for words in ("## Device", "## Benchmarks", "copy GB/s", "segops, Triton") if words not in page]
    failed = [f"{o.part.name}: {o.detail}" for o in outcomes if o.state != PASSED]
    if missing or failed:
        return f"lacks {missing}; judged as failed: {failed}", False
    return f"{len(page.splitlines())} lines, {len(outcomes)} parts", True


@functools.cache
def _capture(command: tuple[str, ...]) -> tuple[int, str]:
    done = subprocess.run(command, cwd=ROOT, env=_plain_environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def _plain_environment() -> dict[str, str]:
    return environment_of(Part("", (), by_status))


if __name__ == "__main__":
    sys.exit(main())
