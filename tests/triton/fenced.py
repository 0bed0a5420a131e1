"""Runs the kernels of an operator with every tensor fenced: an access outside of one ends the process with SIGSEGV.

The interpreter reads and writes plain memory, and most of what lies next to a tensor can be read without a trace. Here
each tensor of a launch, outputs and partial sums included, is moved to where it ends exactly at a page that may not be
touched, or begins exactly behind one.

    python -m tests.triton.fenced after|before OPERATOR [argument that is planted one too large]
    python -m tests.triton.fenced after|before none|neighbour
    python -m tests.triton.fenced serve

The last reads such arguments, a line each, and runs each in a fork, which has all imports already: see `Server`.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from segops.triton import _runtime
from tests.triton import calls

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE = 0


class Fence:
    """Memory between two pages that may not be touched; tensors lie at its end (`after`) or at its start."""

    def __init__(self, after: bool) -> None:
        self.after = after
        self.maps: list[mmap.mmap] = []

    def enclose(self, x: Tensor) -> Tensor:
        """A copy of x, strides included, that owns not a byte more than its elements span."""
        if x.numel() == 0:
            return x
        elements = 1 + sum((extent - 1) * stride for extent, stride in zip(x.shape, x.stride(), strict=True))
        size = elements * x.element_size()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
        self.maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        offset = mmap.PAGESIZE + (pages - size if self.after else 0)
        flat = torch.frombuffer((ctypes.c_byte * size).from_address(start + offset), dtype=x.dtype)
        flat.copy_(x.as_strided((elements,), (1,), x.storage_offset()))
        for page in (start, start + mmap.PAGESIZE + pages):
            if _libc.mprotect(page, mmap.PAGESIZE, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        return flat.as_strided(x.shape, x.stride(), 0)


def fence_launches(operator: str, after: bool, planted: str | None) -> list[str]:
    """From now on fence each launch; returns the list to which their kernels' names are added."""
    launched: list[str] = []

    def launch(kernel: Any, programs: int, like: Tensor, *args: Any, **options: Any) -> None:
        launched.append(kernel.__name__)
        fence = Fence(after)
        fenced = [fence.enclose(a) if isinstance(a, Tensor) else a for a in args]
        if planted in kernel.arg_names:
            fenced[kernel.arg_names.index(planted)] += 1
        _runtime.launch(kernel, programs, like, *fenced, **options)
        for outside, inside in zip(args, fenced, strict=True):
            if isinstance(outside, Tensor) and 0 not in outside.stride():  # expanded tensors are inputs
                outside.copy_(inside)

    calls.replace_launch(operator, launch)
    return launched


@triton.jit
def planted_kernel(x, OFFSET: tl.constexpr):
    lanes = tl.arange(0, 16)
    tl.load(x + lanes + OFFSET, mask=lanes < 10, other=0.0)


def main(side: str, operator: str, planted: str | None = None) -> None:
    if operator in ("neighbour", "none"):
        offset = 0 if operator == "none" else 1 if side == "after" else -1
        fence = Fence(side == "after")
        _runtime.launch(planted_kernel, 1, torch.empty(0), fence.enclose(torch.zeros(10)), offset)
        return
    launched = fence_launches(operator, side == "after", planted)
    calls.of(operator).fenced()
    print(*sorted(set(launched)))


class Done(NamedTuple):
    """How a process ended (its exit status, or the negative number of a signal) and what it wrote."""

    status: int
    text: str


class Server:
    """A process that runs `main` in forks of itself: importing Triton and torch takes longer than most of the calls."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.triton.fenced", "serve"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> Done:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(" ".join(arguments) + "\n")
        self.process.stdin.flush()
        return Done(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def serve() -> None:
    """Answers each line of arguments with `Done` as JSON. Nothing has run here yet: no thread is lost in a fork."""
    for name in calls.names():
        calls.of(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                _exit_after(*line.split())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            print(json.dumps(Done(status, output.read())), flush=True)


def _exit_after(*arguments: str) -> None:
    status = 1
    try:
        main(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main(*sys.argv[1:])
