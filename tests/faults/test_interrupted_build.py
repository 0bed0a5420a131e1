"""A build that is killed leaves nothing that is loaded, and the next one makes what it did not."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CMAKE = """
cmake_minimum_required(VERSION 3.24)
project(toy LANGUAGES CXX)
add_library(segops SHARED first.cpp second.cpp)
add_library(_native MODULE first.cpp)
set_target_properties(_native PROPERTIES PREFIX "")
"""
#: The compiler, which the first time leaves half of second.cpp's object and does not come back.
COMPILER = """#!{python}
import os, subprocess, sys, time
status = subprocess.call([{compiler!r}, *sys.argv[1:]])
if any(word.endswith("second.cpp") for word in sys.argv) and not os.path.exists({mark!r}):
    output = sys.argv[sys.argv.index("-o") + 1]
    os.truncate(output, os.path.getsize(output) // 2)
    open({mark!r}, "w").close()
    time.sleep(100)
sys.exit(status)
"""


def test_the_next_build_finishes_it(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("ninja") is None:
        pytest.skip("no compiler or no ninja")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "first.cpp").write_text('extern "C" int first() { return 1; }\n')
    (tmp_path / "second.cpp").write_text('extern "C" int second() { return 2; }\n')
    libraries = tmp_path / "built" / "segops" / "lib"
    libraries.mkdir(parents=True)
    old = {libraries / "libsegops.so": "old", libraries / "libsegops_gone.so": "old"}
    for path, text in {**old, libraries / "libsegops.so.partial": "half"}.items():
        path.write_text(text)
    mark, wrapper = tmp_path / "mark", tmp_path / "compiler"
    wrapper.write_text(COMPILER.format(python=sys.executable, compiler=compiler, mark=str(mark)))
    wrapper.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "COMPILER_LAUNCHER" not in name}
    environment["CXX"] = str(wrapper)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "built"]

    killed = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not mark.exists():
            assert killed.poll() is None, "the build ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert all(path.read_text() == text for path, text in old.items())  # as before

    subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert [path.name for path in libraries.iterdir()] == ["libsegops.so"]
    assert not list(tmp_path.glob("built/segops/*.partial"))
    library = ctypes.CDLL(str(libraries / "libsegops.so"))
    assert (library.first(), library.second()) == (1, 2)
