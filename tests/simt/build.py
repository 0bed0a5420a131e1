"""Builds tests/simt's kernels with the host execution of csrc/simt, in its variants, and calls them."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
KERNELS = ("kernels.cu", "broken.cu")
RUNTIME = ("runtime.cpp", "warp.cpp", "fiber.cpp", "schedule.cpp", "api.cpp")
CHECKS = ("access.cpp", "counts.cpp", "places.cpp")

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
COMMON = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-DSEGOPS_SIMT", *WARNINGS]
# Locals that a kernel forgot to set are no zeros.
PATTERN = "-ftrivial-auto-var-init=pattern"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# What the compiler checks beside; accesses are the callbacks'.
ARITHMETIC = [
    "-fsanitize=signed-integer-overflow,shift,integer-divide-by-zero",
    "-fno-sanitize-recover=undefined",
]
# One callback for each access that the source makes: nothing merged, split or turned into calls of memset.
CALLBACKS = ["-fsanitize=thread", "-fno-tree-sra", "-fno-tree-vectorize", "-fno-tree-loop-distribute-patterns"]


@dataclasses.dataclass(frozen=True)
class Variant:
    flags: list[str]
    sources: tuple[str, ...] = RUNTIME
    kernel_flags: list[str] = dataclasses.field(default_factory=list)
    cpu_flags: list[str] = dataclasses.field(default_factory=list)  # of CPU kernels, after their own
    link_flags: list[str] = dataclasses.field(default_factory=list)
    compiler: str = "g++"
    emulator: list[str] = dataclasses.field(default_factory=list)
    is_program: bool = True  # overrun.cpp, else a shared library


VARIANTS = {
    "plain": Variant(["-O2", PATTERN], is_program=False),
    "race": Variant(
        ["-O1", "-DSEGOPS_SIMT_RACE", PATTERN],
        RUNTIME + CHECKS,
        kernel_flags=[*CALLBACKS, *ARITHMETIC],
        link_flags=["-fsanitize=undefined"],
        is_program=False,
    ),
    "asan": Variant(["-O1", *SANITIZE], cpu_flags=["-g1", *SANITIZE], link_flags=SANITIZE),
    "ucontext": Variant(["-O1", "-DSEGOPS_SIMT_UCONTEXT"]),
    "arm64": Variant(["-O2"], link_flags=["-static"], compiler="aarch64-linux-gnu-g++", emulator=["qemu-aarch64"]),
}

MODES = ("uniform", "warp", "priority", "last")

SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE = 0, 1, 9, 719  # cudaError_t


def cuda_include() -> Path:
    """The directory of CUDA's headers: that of nvcc, or of the packages that torch's CUDA wheels need."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    places.append(Path("/usr/local/cuda/include"))
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        places += sorted(Path(folder).glob("cu*/include"), reverse=True)
    for place in places:
        if (place / "cuda_bf16.h").exists() and (place / "driver_types.h").exists():
            return place
    pytest.skip("CUDA's headers are not installed (PyPI: nvidia-cuda-runtime, nvidia-cuda-nvcc, nvidia-cuda-crt)")


def includes() -> list[str]:
    return ["-isystem", str(cuda_include()), "-Icsrc/include", "-Icsrc/cuda", "-Icsrc/simt"]


def _run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stderr}"


def once_a_run(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of a run share; what is built there is built under the lock of `built_once`."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def built_once(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, made unless another worker has: `make` writes another file, so that no half of it is taken for it."""
    with FileLock(f"{target}.lock"):
        if not target.exists():
            unfinished = target.with_name(f"unfinished_{target.name}")
            make(unfinished)
            unfinished.rename(target)
    return target


def build(name: str, folder: Path) -> Path:
    """Compiles the kernels and the runtime of a variant, once in a folder."""
    variant = VARIANTS[name]
    for tool in (variant.compiler, *variant.emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    target = folder / ("overrun" if variant.is_program else "libkernels.so")
    return built_once(target, lambda path: _build(variant, folder, path))


def _build(variant: Variant, folder: Path, target: Path) -> None:
    files = [(ROOT / "csrc/simt" / source, []) for source in variant.sources]
    files += [(HERE / kernels, [*variant.kernel_flags, "-x", "c++"]) for kernels in KERNELS]
    files += [(HERE / "overrun.cpp", [])] if variant.is_program else []

    def compile_one(file: tuple[Path, list[str]]) -> Path:
        source, extra = file
        target = folder / (source.name + ".o")
        _run(variant.compiler, *COMMON, *variant.flags, *extra, *includes(), "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, files))
    kind = [] if variant.is_program else ["-shared"]
    _run(variant.compiler, *variant.link_flags, *kind, *objects, "-o", target)


def aligned(shape: int | tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory that starts at a multiple of 128 bytes, as cudaMalloc's does; all ones."""
    count = int(np.prod(shape))
    size = count * np.dtype(dtype).itemsize
    memory = np.full(size + 128, 0xFF, np.uint8)
    start = -memory.ctypes.data % 128
    return memory[start : start + size].view(dtype).reshape(shape)


class Kernels:
    """The library of one variant."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.simt_last_report.restype = ctypes.c_char_p
        self.library.simt_variant.restype = ctypes.c_char_p
        self.library.simt_counters.restype = ctypes.c_size_t
        self.schedule("uniform", 1)

    def schedule(self, mode: str, seed: int) -> None:
        assert self.library.simt_set_schedule(mode.encode(), ctypes.c_uint64(seed)) == 0

    def launch(self, name: str, *arguments: object) -> int:
        """Calls an exported function; arrays go as pointers. Returns its cudaError_t."""
        return getattr(self.library, name)(
            *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments)
        )

    def run(self, name: str, *arguments: object) -> None:
        error = self.launch(name, *arguments)
        assert (error, self.report()) == (SUCCESS, "")

    def report(self) -> str:
        return self.library.simt_last_report().decode()

    @contextlib.contextmanager
    def buffers(self, **arrays: tuple[np.ndarray, bool]) -> Iterator[None]:
        """Registers arrays, each with whether it may be written."""
        for name, (array, writable) in arrays.items():
            pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
            self.library.simt_register_buffer(pointer, size, name.encode(), int(writable))
        try:
            yield
        finally:
            for array, _ in arrays.values():
                self.library.simt_unregister_buffer(ctypes.c_void_p(array.ctypes.data))

    def reset_counters(self) -> None:
        self.library.simt_reset_counters()

    def counters(self) -> list[dict]:
        size = self.library.simt_counters(None, ctypes.c_size_t(0)) + 1
        text = ctypes.create_string_buffer(size)
        self.library.simt_counters(text, ctypes.c_size_t(size))
        return json.loads(text.value)
