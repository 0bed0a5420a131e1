"""The wheel in an empty environment for each torch, tested from outside the source tree: `make dist`.

    python -m tests.dist WHEEL torch torch==2.13.0

Each argument after the wheel is a requirement for pip; all are given the same wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

TINY = Path(__file__).with_name("test_tiny.py")
WHERE = "import torch, segops; print('torch', torch.__version__); print(segops.__file__); print(segops.show_config())"


def faults(files: Iterable[str]) -> list[str]:
    """What is wrong with the list of a wheel's files: what it lacks, and what is not of the package."""
    found = set(files)
    module = f"segops/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    needed = {"segops/__init__.py", "segops/py.typed", "segops/lib/libsegops.so", module}
    of_package = re.compile(r"segops/(\w+/)*\w+\.py|segops/lib/libsegops_\w+\.so|segops-[^/]+\.dist-info/.+")
    strays = {name for name in found - needed if not of_package.fullmatch(name)}
    return [f"missing: {name}" for name in sorted(needed - found)] + [f"stray: {name}" for name in sorted(strays)]


def check(wheel: Path, torch: str) -> None:
    """Raise CalledProcessError if the wheel does not install with this torch, or fails a tiny test."""
    with tempfile.TemporaryDirectory(prefix="segops-dist-") as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SEGOPS_BACKEND")}

        def run(*words: str | Path) -> str:
            command = [python, *words]
            done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout, flush=True)
            return done.stdout

        run("-m", "pip", "install", "--disable-pip-version-check", "--quiet", torch, wheel, "pytest")
        shutil.copy(TINY, folder)
        if str(folder / "env") not in run("-c", WHERE):
            raise SystemExit(f"{wheel}: not what was imported")
        run("-m", "pytest", "-q", "-p", "no:cacheprovider", TINY.name)


def main(wheel: str, *torches: str) -> int:
    path = Path(wheel).resolve()
    with zipfile.ZipFile(path) as archive:
        found = faults(archive.namelist())
    if found:
        print(*found, sep="\n")
        return 1
    for torch in torches:
        print(f"== {path.name} with {torch}", flush=True)
        check(path, torch)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
