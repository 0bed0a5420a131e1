"""The machine code of all device kernels, with limits: `make sass`, on any machine with the CUDA library built.

Limits are the operators' (tests/ladder/ops). The CUDA kernels are taken out of libsegops_cuda.so, the Triton kernels
are compiled ahead of time. Counts are static, over the whole kernel: no time may be claimed from them. Run it as
``python -m tests.ladder.sass``; the exit status is 1 if a limit is broken.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare import table
from tests.ladder import triton_sass
from tests.ladder.operator import Limit, operators

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "segops" / "lib" / "libsegops_cuda.so"
#: Where architectures that the library was built without are compiled, by CMake, so with the flags of the library.
BUILD = ROOT / "build" / "sass"
ARCHITECTURES = triton_sass.ARCHITECTURES

REGISTERS_PER_SM, THREADS_PER_SM, BLOCKS_PER_SM = 65536, 2048, 32
SHARED_PER_SM = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
#: The system takes this much shared memory of each block; from sm_90 on, the tools count it as the kernel's own.
SYSTEM_SHARED, COUNTED_IN = 1024, 90

_INSTRUCTIONS = {
    "ldg128": r"LDG\.E\.(?:\w+\.)*128\b",
    "stg128": r"STG\.E\.(?:\w+\.)*128\b",
    "ldg64": r"LDG\.E\.(?:\w+\.)*64\b",
    "stg64": r"STG\.E\.(?:\w+\.)*64\b",
    "ldgsts": r"LDGSTS\b",
    "lds128": r"LDS\.(?:\w+\.)*128\b",
    "ldsm": r"LDSM\b",
    "mma": r"(?:[HIDQ]G?MMA|UTC\w*MMA)\b",
    # Hopper's product of a group of four warps; those of other architectures are not required to have it.
    "hgmma": r"HGMMA\b",
    "ffma": r"FFMA2?\b",
    "mufu": r"MUFU\b",
    # How a quotient of integers begins where no subroutine is called.
    "int_div": r"I2F\.(?:\w+\.)?RP\b",
}
_MNEMONIC = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([\w.]+)", re.MULTILINE)
_STORED_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class MissingToolError(RuntimeError):
    """What reading machine code takes is not installed, or there is no library to read."""


@dataclass(frozen=True)
class Row:
    """One kernel for one architecture.

    Attributes:
        kernel: short name with its template arguments; for Triton, the case it was compiled for.
        shared: static shared memory, without what the system takes; for Triton all of it.
        threads: of a block, at most.
        spill_bytes: stores to local memory in the code, not how often they run.
        counts: of instructions, by the names of `_INSTRUCTIONS`.
        calls: of subroutines, by name.
    """

    kernel: str
    arch: int
    registers: int
    spill_bytes: int
    stack: int
    shared: int
    threads: int
    counts: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Blocks that fit on a multiprocessor; dynamic shared memory is not known here and can make it less."""
        warps = -(-self.threads // 32)
        by_registers = REGISTERS_PER_SM // (-(-self.registers // 8) * 8 * 32 * warps)
        by_shared = SHARED_PER_SM[self.arch] // (self.shared + SYSTEM_SHARED)
        return min(BLOCKS_PER_SM, THREADS_PER_SM // (32 * warps), by_registers, by_shared)


#: Subroutines that kernels may call, and why that is all right. Every other is a broken limit.
SUBROUTINES = {
    "div_s64": "an index is divided by a runtime size, once a block, only where it does not fit 32 bits",
    "rem_s64": "the same",
    "div_u64": "how often a loop over all of a tensor runs, once a thread",
    "rcp_rn_f32_slowpath": "one reciprocal a pixel; the subroutine runs for denormal and huge sums alone",
    "div_rn_f64_full": "a few divisions of O(N C) sums, in double, once a block",
    "dblrcp_rn_slowpath_v3": "double is there to be exact, not fast",
    "accurate_pow": "the focal term in double: the same",
    "warpsync": "sm_80 where ptxas cannot show that a warp has converged; skipped if it has",
    "shflsync_bfly_p": "the same",
    "shflsync_idx_p": "the same",
    "votesync_any": "the same",
    "votesync_all": "the same",
    "subroutine": "a float64 division of the Triton kernel that turns O(N C) sums into the loss",
}


#: Of kernels that several operators use.
SHARED_LIMITS = (Limit("(?:note|take)_bad_data", 32),)


def problems_of(row: Row, limit: Limit) -> list[str]:
    found = [
        f"{what} {getattr(row, what)} > {getattr(limit, what)}"
        for what in ("registers", "spill_bytes", "stack")
        if getattr(row, what) > getattr(limit, what)
    ]
    found += [
        f"{what} {row.counts.get(what, 0)} < {n}"
        for what, n in limit.required(row.arch).items()
        if row.counts.get(what, 0) < n
    ]
    return found + [f"call of {name}" for name in row.calls if name not in limit.calls]


def broken(rows: Iterable[Row]) -> list[str]:
    """One line for each row that breaks its limit, or that no limit or limits of several operators are stated for."""
    stated = [SHARED_LIMITS, *(operator.limits for operator in operators().values())]
    found = []
    for row in rows:
        # The first that matches of each operator.
        own = [next((limit for limit in limits if re.fullmatch(limit.family, row.kernel)), None) for limits in stated]
        matching = [limit for limit in own if limit is not None]
        if len(matching) == 1:
            problems = problems_of(row, matching[0])
        else:
            problems = ["several operators state a limit for it" if matching else "no limit is stated for it"]
        if problems:
            found.append(f"{row.kernel} for sm_{row.arch}: {'; '.join(problems)}")
    return found


def main() -> int:
    try:
        rows = [row for arch in ARCHITECTURES for row in cuda_rows(arch)]
    except MissingToolError as error:
        print(f"make sass: {error}", file=sys.stderr)
        return 2
    rows += triton_rows()
    print(report(rows))
    found = broken(rows)
    print("\n" + ("\n".join(["Broken limits:", *found]) if found else "All limits hold."))
    return 1 if found else 0


def report(rows: Sequence[Row]) -> str:
    """A Markdown table of the rows, in the order of kernels."""
    header = ["kernel", "sm", "regs", "spill B", "stack", "shared", "threads", "blocks/SM <="]
    header += [
        "LDG.128",
        "STG.128",
        "LDG.64",
        "STG.64",
        "LDGSTS",
        "LDS.128",
        "LDSM",
        "MMA",
        "HGMMA",
        "FFMA",
        "MUFU",
        "int div",
        "calls",
    ]
    lines = []
    for row in sorted(rows, key=lambda r: (r.kernel, r.arch)):
        numbers = (row.arch, row.registers, row.spill_bytes, row.stack, row.shared, row.threads, row.blocks)
        counts = [str(row.counts[name]) if name in row.counts else "-" for name in _INSTRUCTIONS]
        calls = ", ".join(f"{number} {name}" for name, number in sorted(row.calls.items())) or "-"
        lines.append([row.kernel, *map(str, numbers), *counts, calls])
    note = (
        "Blocks per multiprocessor are a bound by registers, threads and static shared memory; dynamic shared memory "
        "depends on the launch and can make it less. Counts are static.\n\n"
    )
    return note + table(header, lines)


def triton_rows(architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    rows = []
    for r in triton_sass.kernels(architectures):
        counts = {name: r[name] for name in _INSTRUCTIONS if name in r}
        name = f"triton {r['kernel'].removesuffix('_kernel')} ({r['case']})"
        calls = {"subroutine": r["call"]} if r["call"] else {}
        numbers = (r["registers"], r["spill_bytes"], r["stack"], r["shared"], r["threads"])
        rows.append(Row(name, r["arch"], *numbers, counts, calls))
    return rows


def cuda_rows(arch: int, compile_missing: bool = True) -> list[Row]:
    """The CUDA kernels for one architecture, from the library, or from one that is compiled for it if that is allowed.

    Raises:
        MissingToolError: cuobjdump, nvdisasm, c++filt, the library or its code for `arch` is missing.
    """
    if not LIBRARY.exists():
        raise MissingToolError("libsegops_cuda.so is not built: make build, with nvcc")
    library = LIBRARY
    if arch not in architectures_of(LIBRARY):
        if not compile_missing:
            raise MissingToolError(f"libsegops_cuda.so has no code for sm_{arch}: make sass compiles it")
        library = _compile()
    with tempfile.TemporaryDirectory() as folder:
        _run("cuobjdump", "--extract-elf", f"sm_{arch}", library, cwd=folder)
        return [row for cubin in sorted(Path(folder).glob(f"*.sm_{arch}.cubin")) for row in rows_of_cubin(cubin, arch)]


def architectures_of(library: Path) -> set[int]:
    return {int(arch) for arch in re.findall(r"\.sm_(\d+)\.cubin", _run("cuobjdump", "--list-elf", library))}


def rows_of_cubin(cubin: Path, arch: int) -> list[Row]:
    usage = re.findall(
        r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        _run("cuobjdump", "--dump-resource-usage", cubin),
    )
    code, threads = _sections(_run("nvdisasm", cubin))
    names = [name for name, *_ in usage]
    rows = []
    for (name, *numbers), shown in zip(usage, short_names(names), strict=True):
        registers, stack, shared, local = map(int, numbers)
        sass = code[name]
        shared -= SYSTEM_SHARED if arch >= COUNTED_IN else 0
        rows.append(
            Row(shown, arch, registers, spills(sass) + local, stack, max(shared, 0), threads.get(name, 1024),
                instructions(sass), subroutines(sass))
        )  # fmt: skip
    return rows


def instructions(sass: str) -> dict[str, int]:
    """How many of each of `_INSTRUCTIONS`. A kernel has a few dozen mnemonics, and only these are matched."""
    mnemonics = Counter(_MNEMONIC.findall(sass))
    return {
        what: sum(number for mnemonic, number in mnemonics.items() if re.match(pattern, mnemonic))
        for what, pattern in _INSTRUCTIONS.items()
    }


def spills(sass: str) -> int:
    """Bytes of all stores to local memory."""
    stored = re.findall(r"\bSTL(?:\.(\w+))?\b", sass)
    return sum(_STORED_BYTES.get(width, 4) for width in stored)


def subroutines(sass: str) -> dict[str, int]:
    """Calls by the name of the subroutine, such as div_s64.

    For sm_80 ptxas writes some jumps as calls of a label in the kernel itself; those are none.
    """
    called = re.findall(r"\bCALL\.\S+ .*?`\((?!\.L_)([^)]+)\)", sass)
    return dict(Counter(re.sub(r"^.*\$(?:__internal_)?(?:__cuda_sm\d+_)?", "", name) for name in called))


def short_names(names: Sequence[str]) -> list[str]:
    """`dice_ce_loss_forward<float, 24, planar>` of the mangled name; the only flag of our templates is the layout."""
    if shutil.which("c++filt") is None:
        raise MissingToolError("c++filt (binutils) is not installed")
    shown = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    short = []
    for name in shown:
        name = re.sub(r"\(anonymous namespace\)::|\w+::|^void ", "", name)
        name = re.sub(r"\(.*\)$", "", name).replace("_kernel", "")
        for long, brief in (
            ("__nv_bfloat16", "bfloat16"),
            ("__half", "float16"),
            ("true", "rows"),
            ("false", "planar"),
        ):
            name = re.sub(rf"\b{long}\b", brief, name)
        short.append(name.removeprefix("void "))
    return short


def _sections(disassembly: str) -> tuple[dict[str, str], dict[str, int]]:
    """By mangled name: the code, and the threads of a block that the kernel's launch bounds allow."""
    code, threads = {}, {}
    for section in re.split(r"^\s*\.section\s+", disassembly, flags=re.MULTILINE)[1:]:
        name = section.partition(",")[0].strip('"')
        if name.startswith(".text."):
            code[name.removeprefix(".text.")] = section
        elif name.startswith(".nv.info."):
            bound = re.search(r"EIATTR_MAX_THREADS.*?\.word\s+(0x\w+)", section, re.DOTALL)
            if bound:
                threads[name.removeprefix(".nv.info.")] = int(bound.group(1), 16)
    return code, threads


def _compile() -> Path:
    """The CUDA library for all architectures, in a folder of its own. What is there already is not compiled again."""
    if shutil.which("nvcc") is None:
        raise MissingToolError(
            "libsegops_cuda.so was built for fewer architectures, and there is no nvcc for the others"
        )
    import pybind11
    import torch

    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    archs = ";".join(map(str, ARCHITECTURES))
    options = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "SEGOPS_TORCH_DIR": Path(torch.__file__).parent,
        "SEGOPS_CUDA": "on",
        "SEGOPS_CUDA_ARCHS": archs,
    }
    configure = ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())]
    for command in (configure, ["cmake", "--build", BUILD, "--target", "segops_cuda", "--parallel", "2"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"compiling for sm_{archs} failed:\n{done.stdout}\n{done.stderr}")
    return BUILD / LIBRARY.name


def _tool(name: str) -> str:
    """On the PATH, or in the Triton wheel."""
    if found := shutil.which(name):
        return found
    try:
        import triton.backends.nvidia
    except ImportError:
        raise MissingToolError(f"{name} is neither on the PATH nor in a Triton wheel") from None
    path = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    if not path.exists():
        raise MissingToolError(f"{name} is neither on the PATH nor in the Triton wheel")
    return str(path)


def _run(tool: str, *arguments: str | Path, cwd: str | None = None) -> str:
    return subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=True, cwd=cwd).stdout


if __name__ == "__main__":
    sys.exit(main())
