"""Builds and runs tests/csrc/simt_dice_ce_loss.cpp: the CUDA kernels on the host execution against the CPU kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.simt.build import COMMON, MODES, ROOT, VARIANTS, includes

DRIVER = ROOT / "tests/csrc/simt_dice_ce_loss.cpp"
CPU = ("dice_ce_loss.cpp", "isa.cpp")
CPU_FLAGS = ["-std=c++20", "-O3", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math", "-DSEGOPS_ISA=baseline"]
CPU_FLAGS += ["-DSEGOPS_ISA_IS_BASELINE", "-DSEGOPS_ONE_LEVEL", "-Icsrc/include", "-Icsrc/cpu"]
KERNELS = ("dice_ce_loss.cu", "dice_ce_loss_backward.cu", "dice_ce_loss_value.cu")


class BuildError(RuntimeError):
    """The compiler refused; the message is its own."""


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _compile(jobs: Iterable[list[str | Path]], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(_run, jobs))


def compile_rest(name: str, folder: Path, workers: int = 2) -> list[Path]:
    """Objects of a variant that are not kernels: the host execution, the CPU kernels and the driver."""
    variant = VARIANTS[name]
    host = [variant.compiler, *COMMON, *variant.flags, *includes()]
    sources = [(host, ROOT / "csrc/simt" / source) for source in variant.sources] + [(host, DRIVER)]
    sources += [([variant.compiler, *CPU_FLAGS], ROOT / "csrc/cpu" / source) for source in CPU]
    objects = [folder / (source.name + ".o") for _, source in sources]
    _compile(
        ([*command, "-c", source, "-o", target] for (command, source), target in zip(sources, objects, strict=True)),
        workers,
    )
    return objects


def compile_kernels(
    name: str, folder: Path, kernels: Sequence[str] = KERNELS, csrc: Path = ROOT / "csrc", workers: int = 2
) -> list[Path]:
    """Objects of the kernels of a variant, from the sources under `csrc`."""
    variant = VARIANTS[name]
    # The header of the kernels includes that of the host execution by its relative path.
    paths = [f"-I{csrc / 'include'}", f"-I{csrc / 'cuda'}", f"-I{csrc / 'simt'}"]
    command = [variant.compiler, *COMMON, *variant.flags, *variant.kernel_flags, *paths, *includes(), "-x", "c++"]
    objects = [folder / (kernel + ".o") for kernel in kernels]
    _compile(
        (
            [*command, "-c", csrc / "cuda" / kernel, "-o", target]
            for kernel, target in zip(kernels, objects, strict=True)
        ),
        workers,
    )
    return objects


def link(name: str, objects: Sequence[Path], target: Path) -> Path:
    variant = VARIANTS[name]
    _run([variant.compiler, *variant.link_flags, *objects, "-o", target])
    return target


def build(name: str, folder: Path) -> Path:
    """The driver in a variant of tests.simt.build."""
    return link(name, compile_kernels(name, folder) + compile_rest(name, folder), folder / "driver")


def case(**options: object) -> str:
    """A line for the driver."""
    return " ".join(f"{key}={int(value) if isinstance(value, bool) else value}" for key, value in options.items())


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
    place = re.search(r"[\w.]+\.cuh?:\d+", stderr)
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
