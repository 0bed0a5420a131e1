"""The CPU library under sanitizers, in a copy of the package that loads it: ``package("asan", folder)``.

The process that imports the copy needs :func:`environment`, since Python itself is not built with a sanitizer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "asan": "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
    "tsan": "-fsanitize=thread -Wno-maybe-uninitialized -DSEGOPS_OWN_THREADS",
}
#: Loaded before Python: the sanitizer, and the library whose exceptions it wraps.
PRELOAD = {"asan": ("libasan.so", "libubsan.so", "libstdc++.so"), "tsan": ("libtsan.so", "libstdc++.so")}
OPTIONS = {
    # Python and torch keep what they have to the end; allocations that fail are errors of ours to handle.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
    # What torch, built without it, calls in its own threads is not ours to judge.
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=99:report_signal_unsafe=0",
}


def package(variant: str, folder: Path, jobs: int = 2) -> Path:
    """Builds what has changed; the folder to have on PYTHONPATH, and to be in, so that its segops is the one."""
    import pybind11

    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    build = folder / f"cmake-{variant}"
    build.mkdir(parents=True, exist_ok=True)
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Sanitized",
        f"-DCMAKE_CXX_FLAGS_SANITIZED=-O1 -g1 -fno-omit-frame-pointer {FLAGS[variant]}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DSEGOPS_TORCH_DIR={Path(torch.origin).parent}",
        f"-DSEGOPS_TORCH_VERSION={importlib.metadata.version('torch')}", "-DSEGOPS_CUDA=off",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(build), "--parallel", str(jobs)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    home = folder / variant
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(ROOT / "segops", home / "segops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (home / "segops/lib").mkdir(exist_ok=True)
    shutil.copy2(build / "libsegops.so", home / "segops/lib")
    shutil.copy2(next(build.glob("_native*.so")), home / "segops")
    return home


def environment(variant: str, home: Path, **more: str) -> dict[str, str]:
    """For a process in the folder `home`."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in PRELOAD[variant]
    ]
    return {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": " ".join(found),
        "PYTHONPATH": os.pathsep.join((str(home), str(ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }
