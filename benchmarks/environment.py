"""What a number was measured on: the allocator regime, the machine, the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "segops", "numpy", "monai", "segmentation-models-pytorch", "pytest-benchmark")
MIN_TRIM_THRESHOLD = 1 << 30
MIN_TOP_PAD = 1 << 26


def regime(environ: Mapping[str, str] = os.environ) -> str:
    """Name of the allocator regime that the environment sets up: "recycled" or "default".

    glibc maps every large tensor afresh by default, and the page faults of the first touch can cost more than a kernel.
    "recycled" keeps freed memory in the heap, so that kernels are compared; "default" is what a user gets.

    Raises:
        ValueError: the variables make neither regime, or not the one that SEGOPS_BENCH_REGIME asks for.
    """
    settings = {name: value for name, value in sorted(environ.items()) if name.startswith("MALLOC_")}
    for name, word in (("GLIBC_TUNABLES", "glibc.malloc"), ("LD_PRELOAD", "malloc")):
        if word in environ.get(name, ""):
            settings[name] = environ[name]
    found = "default"
    if settings:
        found = "recycled"
        recycled = (
            settings.keys() == {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
            and settings["MALLOC_MMAP_MAX_"] == "0"
            and int(settings["MALLOC_TRIM_THRESHOLD_"]) >= MIN_TRIM_THRESHOLD
            and int(settings["MALLOC_TOP_PAD_"]) >= MIN_TOP_PAD
        )
        if not recycled:
            raise ValueError(
                f"the allocator settings {settings} are neither the default (none) nor recycled (MALLOC_MMAP_MAX_=0, "
                f"MALLOC_TRIM_THRESHOLD_ >= {MIN_TRIM_THRESHOLD}, MALLOC_TOP_PAD_ >= {MIN_TOP_PAD}, nothing else)"
            )
    named = environ.get("SEGOPS_BENCH_REGIME", found)
    if named != found:
        raise ValueError(
            f"SEGOPS_BENCH_REGIME={named}, but the allocator settings {settings} make the regime {found!r}"
        )
    return found


def describe(device: str = "cpu") -> dict[str, Any]:
    """What pytest-benchmark does not record by itself; goes into `machine_info` of the JSON.

    Called before the first benchmark, so that the load is that of others.
    """
    from segops import _native

    return {
        "regime": regime() if device == "cpu" else device,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": _native.cpu_isa(),
        "compiler": _native.compiler,
        "governor": _governor(),
        "load": os.getloadavg()[0],
        "libc": " ".join(platform.libc_ver()),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    } | ({"gpu": _gpu()} if device == "cuda" else {})


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name} (sm_{found.major}{found.minor}, {found.multi_processor_count} multiprocessors, "
        f"{found.total_memory / 2**30:.0f} GiB, L2 {found.L2_cache_size >> 20} MiB), CUDA {torch.version.cuda}"
    )


def _governor() -> str | None:
    """Virtual machines and other systems have no such file."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
