"""The machine code of the Triton kernels, compiled ahead of time: no GPU, no driver.

The operators' own host code runs on CPU tensors, and each launch compiles what it would have launched: the arguments'
divisibility, and with it the width of memory accesses, is what it is in use. Counts are static, over the whole kernel;
no time may be claimed from them.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)

_WIDTH = {"": 4, ".64": 8, ".128": 16}


@functools.cache
def kernels(architectures: tuple[int, ...] = ARCHITECTURES) -> list[dict[str, Any]]:
    """One row for each operator, kernel, case and architecture, with the numbers of `resources`.

    Also `options`, the numbers among the launch's keywords, and `element_size`, that of the first tensor.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.ladder.triton_sass", *map(str, architectures)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"compiling the Triton kernels failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def resources(compiled: Any) -> dict[str, int]:
    """Registers, stack, shared memory and counts of instructions of one compiled Triton kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", cubin)
        sass = _run("nvdisasm", "-c", cubin)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    stores = re.findall(r"\bSTL(\.64|\.128)?\b", sass)
    return {
        "registers": numbers["REG"],
        "spill_bytes": sum(_WIDTH[width] for width in stores) + numbers["LOCAL"],
        "stack": numbers["STACK"],
        "shared": compiled.metadata.shared,
        "threads": 32 * compiled.metadata.num_warps,
        "ldg128": len(re.findall(r"\bLDG\.E\.128", sass)),
        "stg128": len(re.findall(r"\bSTG\.E\.128", sass)),
        "ldg": len(re.findall(r"\bLDG\.", sass)),
        "stg": len(re.findall(r"\bSTG\.", sass)),
        "mufu": len(re.findall(r"\bMUFU\.", sass)),
        # For sm_80 ptxas writes the exit of a loop as a call of a label in the kernel itself; subroutines, such as
        # those of divisions, have names.
        "call": len(re.findall(r"\bCALL\.(?!.*`\(\.L_)", sass)),
        "mma": len(re.findall(r"\b(?:H?G?MMA\.|UTC\w*MMA\b)", sass)),
        "hgmma": len(re.findall(r"\bHGMMA\.", sass)),
        # Arithmetic on 16-bit numbers, which are to be widened first.
        "narrow_math": len(
            re.findall(r"\b(?:arith|math)\.(?!extf|truncf|constant)\w+ .*(?:x| )b?f16\b", compiled.asm["ttir"])
        ),
        "instructions": len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
    }


def _run(tool: str, *arguments: str | Path) -> str:
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / tool
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


class _NoDevice:
    """What compiling asks of a driver: the target. A device number of its own keeps its kernels apart."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile_all(architectures: Sequence[int]) -> list[dict[str, Any]]:
    from triton.runtime import driver

    from tests.triton import calls

    rows: list[dict[str, Any]] = []
    operator = case = ""
    known: dict[str, dict[str, int]] = {}  # by the kernel's hash: several cases launch the same

    def compile_instead(kernel: Any, programs: int, like: Any, *args: Any, **options: Any) -> None:
        compiled = kernel.warmup(*args, grid=(programs,), **options)
        if compiled.hash not in known:
            known[compiled.hash] = resources(compiled)
        numbers = {name: value for name, value in options.items() if isinstance(value, int)}
        size = next((arg.element_size() for arg in args if hasattr(arg, "element_size")), 0)
        about = {"op": operator, "kernel": kernel.__name__, "case": case, "arch": architecture}
        rows.append({**about, "options": numbers, "element_size": size, **known[compiled.hash]})

    for operator in calls.names():
        calls.replace_launch(operator, compile_instead)
    for architecture in architectures:
        driver.set_active(_NoDevice(architecture))
        for operator in calls.names():
            for shown, call in calls.of(operator).compiled():
                case = shown
                call()
    return rows


if __name__ == "__main__":
    print(json.dumps(_compile_all([int(word) for word in sys.argv[1:]])))
