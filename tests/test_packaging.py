"""Source distribution and wheel hold what they should; `make dist` builds both in earnest and installs the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.dist import faults
from tests.test_build import ROOT, tracked_files

#: Of the checkout, not of the distribution.
LEFT_OUT = {".ci", ".clang-format", ".github", ".gitignore", ".pre-commit-config.yaml", "MANIFEST.in"}
#: Run in place of the compilers: a file of each kind that CMake would leave.
PRETENDED_BUILD = """
import subprocess, sys, sysconfig
from pathlib import Path

def run(command, **options):
    if command[1] == "-S":
        build = Path(command[command.index("-B") + 1])
        (build / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("")
        for name in ("segops", "segops_cuda", "segops_simt"):
            (build / f"lib{name}.so").write_text("new")

subprocess.run = run
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of this tree, in which libraries of another build lie about."""
    folder = tmp_path_factory.mktemp("sdist")
    for path in tracked_files():
        target = folder / "tree" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "tree" / "segops" / "lib").mkdir()
    (folder / "tree" / "segops" / "lib" / "libsegops_stale.so").write_text("")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=folder / "tree", check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


def test_the_source_distribution_holds_what_git_tracks(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {name for name in names if name.startswith("segops.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    tracked = {str(path.relative_to(ROOT)) for path in tracked_files()}
    expected = {name for name in tracked if name.split("/")[0] not in LEFT_OUT}
    assert names - made - {"MANIFEST.in"} == expected


def test_the_wheel_of_it_holds_the_package_and_its_libraries(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    subprocess.run(
        [sys.executable, "-c", PRETENDED_BUILD, str(tmp_path)],
        cwd=source,
        env={**os.environ, "CXX": sys.executable},
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.split("-")[2] == f"cp{sys.version_info.major}{sys.version_info.minor}"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not faults(names)
    packed = {name for name in names if name.startswith("segops/") and name.endswith(".py")}
    assert packed == {str(path.relative_to(source)) for path in (source / "segops").rglob("*.py")}
    assert {"segops/lib/libsegops_cuda.so", "segops/lib/libsegops_simt.so"} <= set(names)


def test_what_does_not_belong_into_a_wheel_is_named() -> None:
    missing, *others = faults(["segops/__init__.py", "segops/_native.so", "segops/lib/libsegops.so", "segops/py.typed"])
    assert missing.startswith("missing: segops/_native.")
    assert others == ["stray: segops/_native.so"]
    assert "stray: tests/test_tiny.py" in faults(["tests/test_tiny.py"])
