"""What the ladder has to be told of an operator: the fields of `Operator`, in ``tests/ladder/ops/<operator>.py``.

The rungs find the operators there by themselves: adding one is adding files. See README.md, "Adding a kernel".
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def case(**options: object) -> str:
    """A line for a driver; the keys are its own, but for mode and seed."""
    return " ".join(f"{key}={int(value) if isinstance(value, bool) else value}" for key, value in options.items())


def crossed(
    op: str, dtypes: Sequence[str], shapes: Sequence[dict[str, object]], layouts: Sequence[dict[str, object]]
) -> list[str]:
    """Cases of every shape with every layout and of every dtype with every layout, but not of every triple."""
    chosen = [(dtype, shapes[2], layout) for dtype in dtypes for layout in layouts]
    chosen += [(dtypes[i % len(dtypes)], shape, layout) for i, shape in enumerate(shapes) for layout in layouts]
    lines = [case(op=op, dtype=dtype, **{**shape, **layout}) for dtype, shape, layout in chosen]
    return list(dict.fromkeys(lines))


@dataclass(frozen=True)
class Bytes:
    """That a kernel moves.

    Attributes:
        floor: what has to be moved, once.
        most: times the floor; sectors that are needed in part count whole.
        beside: bytes allowed besides, such as partial sums.
    """

    floor: int
    most: float = 1.05
    beside: float = 0

    @property
    def limit(self) -> float:
        return self.most * self.floor + self.beside


@dataclass(frozen=True)
class Moves:
    """What one kernel may move in one case; of shared memory, the bank conflicts for each request."""

    read: Bytes
    written: Bytes
    conflicts: float = 0.0


@dataclass(frozen=True)
class Traffic:
    """One case whose bytes are counted.

    Attributes:
        shown: the case in the table.
        line: the case for the driver.
        kernels: by a regular expression for the kernel's name without "_kernel". Each must run, and no other may.
    """

    shown: str
    line: str
    kernels: Mapping[str, Moves]


@dataclass(frozen=True)
class Mutant:
    """A bug to be planted.

    Attributes:
        bug: as verification.md's list of planted bugs has it, or of that kind.
        file: under csrc/cuda.
        text, replacement: `text` is there `count` times, and all are replaced.
        rungs: that must catch it (3 plain, 4 race, 5 sanitizers); only they run.
    """

    name: str
    bug: str
    file: str
    text: str
    replacement: str
    rungs: tuple[int, ...]
    count: int = 1

    def apply(self, csrc: Path) -> None:
        path = csrc / "cuda" / self.file
        source = path.read_text()
        if source.count(self.text) != self.count:
            raise ValueError(
                f"{self.name}: {source.count(self.text)} times in {self.file}, not {self.count}: {self.text!r}"
            )
        path.write_text(source.replace(self.text, self.replacement))


@dataclass(frozen=True)
class Limit:
    """What the machine code of one family of kernels must keep to, on every architecture.

    Attributes:
        family: a regular expression for the whole name of a kernel. The first limit that matches is a kernel's. Those
            of Triton are named "triton NAME (CASE)".
        registers: of a thread, at most.
        spill_bytes, stack: at most.
        at_least: of an instruction, where the layout of the data promises it.
        at_least_of: the same for one architecture, by its number, in addition.
        calls: the subroutines of `sass.SUBROUTINES` that may occur.
    """

    family: str
    registers: int
    spill_bytes: int = 0
    stack: int = 0
    at_least: dict[str, int] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    at_least_of: dict[int, dict[str, int]] = field(default_factory=dict)

    def required(self, arch: int) -> dict[str, int]:
        """Of each instruction, how many there must be for this architecture."""
        return {**self.at_least, **self.at_least_of.get(arch, {})}


# Subroutines that kernels may call, for `Limit.calls`.
INDEX = ("div_s64", "rem_s64")
COLLECTIVES = ("warpsync", "shflsync_bfly_p", "shflsync_idx_p", "votesync_any", "votesync_all")
OF_FLOAT = (*INDEX, *COLLECTIVES, "rcp_rn_f32_slowpath", "div_rn_f64_full")
OF_DOUBLE = (*INDEX, *COLLECTIVES, "div_rn_f64_full", "dblrcp_rn_slowpath_v3")


@dataclass(frozen=True)
class Operator:
    """One operator and its kernels, as the rungs need them. Its driver is ``tests/csrc/simt_<name>.cpp``.

    Attributes:
        name: the basename of its files.
        cpu: files of kernels that the driver needs, under csrc/cpu.
        cuda: the same, under csrc/cuda.
        cases: lines for the driver, in groups, with no mode: small ones of every template and option. The race build
            runs each in every order of the threads, the sanitizers in one.
        large: groups of slower cases, such as several images of several blocks; each runs in one order.
        traffic: see `Traffic`.
        mutants: see `Mutant`; of every kind that the kernels offer a place for.
        mutant_cases: lines that catch them, few and small; each runs in every order of the threads.
        limits: see `Limit`.
        fuzz: draws a line for the driver, with mode and seed, where the operator's data can lead it astray (indices).
    """

    name: str
    cpu: Sequence[str]
    cuda: Sequence[str]
    cases: Mapping[str, Sequence[str]]
    traffic: Sequence[Traffic]
    mutants: Sequence[Mutant]
    mutant_cases: Sequence[str]
    limits: Sequence[Limit]
    large: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fuzz: Callable[[random.Random], str] | None = None

    @property
    def driver(self) -> Path:
        return ROOT / f"tests/csrc/simt_{self.name}.cpp"


@functools.cache
def operators() -> dict[str, Operator]:
    """Every operator by name: the modules of tests/ladder/ops that have an `OPERATOR`; the others are parts of them."""
    from tests.ladder import ops

    modules = [
        importlib.import_module(f"{ops.__name__}.{module.name}") for module in pkgutil.iter_modules(ops.__path__)
    ]
    found = [module.OPERATOR for module in modules if hasattr(module, "OPERATOR")]
    return {operator.name: operator for operator in found}
