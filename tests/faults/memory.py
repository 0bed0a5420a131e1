"""Calls operators with less and less memory to be had: ``python -m tests.faults.memory``, a process of its own.

Prints a line of JSON: for each operator how many calls gave their result, how many an error for lack of memory, and
what was wrong; and by how much the process has grown from the second round to the last.
"""

from __future__ import annotations

import gc
import json
import resource
from collections.abc import Callable
from typing import Any

import torch

from tests.faults import large
from tests.faults.check import NO_MEMORY, flat

STEP, STEPS = 1 << 19, 40
ROUNDS = 4


def size() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def limited(extra: int, call: Callable[[], Any]) -> Any:
    """The call's result, with so many bytes beyond what the process has now."""
    resource.setrlimit(resource.RLIMIT_AS, (size() + extra, resource.RLIM_INFINITY))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main() -> None:
    torch.set_num_threads(2)
    told: dict[str, dict[str, Any]] = {}
    sizes = []
    every = large.calls()
    expected = {name: [x.clone() for x in flat(call())] for name, call in every.items()}
    for _ in range(ROUNDS):
        for name, call in every.items():
            counts = told.setdefault(name, {"results": 0, "errors": 0, "wrong": []})
            for step in range(STEPS):
                try:
                    found = flat(limited(step * STEP, call))
                    counts["results"] += 1
                    if not all(map(torch.equal, found, expected[name])):
                        counts["wrong"].append(f"another result with {step * STEP} bytes")
                    del found
                except (MemoryError, RuntimeError) as error:
                    counts["errors"] += 1
                    if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
                        counts["wrong"].append(f"{step * STEP} bytes: {error}")
        gc.collect()
        sizes.append(size())
    print(json.dumps({"calls": told, "growth": sizes[-1] - sizes[1]}))


if __name__ == "__main__":
    main()
