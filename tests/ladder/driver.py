"""Builds and runs the drivers of tests/csrc: CUDA kernels on the host execution against the CPU kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ladder.operator import Operator
from tests.simt.build import COMMON, MODES, ROOT, VARIANTS, built_once, includes

# -O1: the CPU kernels say what is expected, of small cases; compiling them for speed takes three times as long.
CPU_FLAGS = ["-std=c++20", "-O1", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math", "-DSEGOPS_ISA=baseline"]
CPU_FLAGS += ["-DSEGOPS_ISA_IS_BASELINE", "-DSEGOPS_ONE_LEVEL", "-Icsrc/include", "-Icsrc/cpu"]


class BuildError(RuntimeError):
    """The compiler refused; the message is its own."""


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _compile(jobs: Sequence[tuple[list[str], Path]], folder: Path, workers: int) -> list[Path]:
    """The objects of sources, each with the command that compiles it."""
    objects = [folder / (source.name + ".o") for _, source in jobs]

    def compile_one(job: tuple[list[str], Path], target: Path) -> None:
        command, source = job
        _run([*command, "-c", source, "-o", target])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(compile_one, jobs, objects))
    return objects


def _host(variant: str) -> list[str]:
    chosen = VARIANTS[variant]
    return [chosen.compiler, *COMMON, *chosen.flags, *includes()]


def _cpu(variant: str) -> list[str]:
    return [VARIANTS[variant].compiler, *CPU_FLAGS, *VARIANTS[variant].cpu_flags]


def compile_kernels(
    operator: Operator,
    variant: str,
    folder: Path,
    kernels: Sequence[str] | None = None,
    csrc: Path = ROOT / "csrc",
    workers: int = 2,
) -> dict[str, Path]:
    """Objects of the CUDA kernels (default: all) of an operator by file, from the sources under `csrc`."""
    chosen = VARIANTS[variant]
    # The header of the kernels includes that of the host execution by its relative path.
    paths = [f"-I{csrc / 'include'}", f"-I{csrc / 'cuda'}", f"-I{csrc / 'simt'}"]
    # What a planted bug leaves unused is no error.
    planted = ["-Wno-error"] * (csrc != ROOT / "csrc")
    command = [
        chosen.compiler,
        *COMMON,
        *chosen.flags,
        *chosen.kernel_flags,
        *planted,
        *paths,
        *includes(),
        "-x",
        "c++",
    ]
    names = operator.cuda if kernels is None else kernels
    objects = _compile([(command, csrc / "cuda" / name) for name in names], folder, workers)
    return dict(zip(names, objects, strict=True))


def compile_rest(operator: Operator, variant: str, folder: Path, workers: int = 2) -> list[Path]:
    """Objects of an operator's driver and CPU kernels."""
    jobs = [(_host(variant), operator.driver)]
    jobs += [(_cpu(variant), ROOT / "csrc/cpu" / name) for name in operator.cpu]
    return _compile(jobs, folder, workers)


class Drivers:
    """Drivers of operators in the variants of tests.simt.build, each built once in `folder`, whoever shares it."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        self.workers = workers

    def runtime(self, variant: str) -> Path:
        """The object that every driver of a variant has: the host execution, and the CPU kernels' choice of a level."""

        def make(target: Path) -> None:
            jobs = [(_host(variant), ROOT / "csrc/simt" / source) for source in VARIANTS[variant].sources]
            jobs.append((_cpu(variant), ROOT / "csrc/cpu/isa.cpp"))
            _run([VARIANTS[variant].compiler, "-r", *_compile(jobs, target.parent, self.workers), "-o", target])

        return built_once(self._place(variant) / "runtime.o", make)

    def __call__(self, operator: Operator, variant: str) -> Path:
        def make(target: Path) -> None:
            objects = [*compile_kernels(operator, variant, target.parent, workers=self.workers).values()]
            objects += compile_rest(operator, variant, target.parent, self.workers)
            self.link(variant, objects, target)

        return built_once(self._place(variant, operator.name) / "driver", make)

    def link(self, variant: str, objects: Sequence[Path], target: Path) -> Path:
        chosen = VARIANTS[variant]
        _run([chosen.compiler, *chosen.link_flags, *objects, self.runtime(variant), "-o", target])
        return target

    def _place(self, *names: str) -> Path:
        place = self.folder.joinpath(*names)
        place.mkdir(parents=True, exist_ok=True)
        return place


def in_all_modes(cases: Iterable[str]) -> list[str]:
    return [f"{line} mode={mode}" for line in cases for mode in MODES]


def in_turn(cases: Iterable[str]) -> list[str]:
    """Each case in one mode, the modes taken in turn."""
    return [f"{line} mode={MODES[i % len(MODES)]}" for i, line in enumerate(cases)]


def run(program: Path, lines: Sequence[str], *, only_first: bool = False, timeout: float = 300) -> list[str]:
    """The driver's answers, line by line; the last is what ended the process where it did not end by itself.

    With `only_first` the answers end with the first that is not "ok".
    """
    # Threads that are left in the middle of a kernel never free what they hold.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(program), *(["first"] if only_first else [])]
    try:
        done = subprocess.run(
            command,
            input="\n".join(lines),
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return [*output.splitlines(), f"did not end within {timeout:g} s"]
    answers = done.stdout.splitlines()
    if done.returncode not in (0, 1) or (done.returncode == 1 and not wrong(answers)):
        answers.append(_summary(done.returncode, done.stderr))
    return answers


def wrong(answers: Iterable[str]) -> list[str]:
    return [answer for answer in answers if answer != "ok" and not answer.startswith("[")]


def _summary(status: int, stderr: str) -> str:
    """What a sanitizer says, with the first place in a kernel."""
    told = re.search(r"(runtime error: .*|AddressSanitizer: \S+)", stderr)
    place = re.search(r"[\w.]+\.cuh?:\d+|(?<=csrc/cpu/)[\w.]+:\d+", stderr)
    text = told.group(1) if told else stderr[-300:]
    return f"exit status {status}: {text}" + (f" at {place.group(0)}" if place else "")


def failures(program: Path, lines: Sequence[str], timeout: float = 300) -> list[str]:
    """Case and answer wherever the answer is not "ok"."""
    answers = run(program, lines, timeout=timeout)
    found = [f"{line}: {answer}" for line, answer in zip(lines, answers, strict=False) if answer != "ok"]
    if len(answers) < len(lines) and not found:
        found.append(f"{len(answers)} answers to {len(lines)} cases")
    return found


def counters(program: Path, line: str) -> list[dict]:
    """What the race build counts for one case, by kernel (csrc/simt/api.h)."""
    answers = run(program, [line, "counters"])
    if len(answers) != 2 or answers[0] != "ok":
        raise RuntimeError(f"{line}: {answers}")
    return json.loads(answers[1])
