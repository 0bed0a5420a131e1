"""Drives CMake; the sources and their flags are in CMakeLists.txt.

Environment: SEGOPS_CUDA (auto, on, off), SEGOPS_CUDA_ARCHS ("80;90;100"), MAX_JOBS.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
PYBIND11_MODULE = "segops._native"


def torch_to_build_for() -> tuple[Path, str]:
    """Directory and version of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("segops: building needs torch >= 2.11 in this environment: pip install torch")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < OLDEST_TORCH:
        sys.exit(f"segops: building needs torch >= 2.11, this environment has {version}: pip install -U torch")
    return Path(spec.origin).parent, version


def require_compiler() -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        sys.exit(
            f"segops: no C++ compiler ({compiler!r} is not on the PATH). Install one with C++20, such as "
            "g++ 12 (Debian and Ubuntu: apt install g++), or set CXX."
        )


class CMakeBuild(build_ext):
    """Builds all libraries with one CMake run and copies them beside the package's Python files."""

    def build_extension(self, ext: Extension) -> None:
        require_compiler()
        torch_dir, torch_version = torch_to_build_for()
        import pybind11

        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSEGOPS_TORCH_DIR={torch_dir}",
            f"-DSEGOPS_TORCH_VERSION={torch_version}",
            f"-DSEGOPS_CUDA={os.environ.get('SEGOPS_CUDA', 'auto')}",
            f"-DSEGOPS_CUDA_ARCHS={os.environ.get('SEGOPS_CUDA_ARCHS', '80;90;100')}",
        ]  # fmt: skip
        # The cmake and ninja of this environment come before the system's.
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        try:
            subprocess.run(configure, check=True, env=env)
            subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True, env=env)
        except FileNotFoundError:
            sys.exit("segops: cmake was not found: pip install cmake ninja")
        except subprocess.CalledProcessError as error:
            sys.exit(f"segops: the build failed (exit status {error.returncode}); the compiler's message is above")

        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install copies only the module home from a temporary place; the libraries go there by themselves.
        home = ROOT / "segops" if self.editable_mode or self.inplace else module.parent
        libraries = home / "lib"
        built = {libraries / path.name: path for path in build.glob("libsegops*.so")}
        # copy2 writes into the old file's inode, which a running process may have mapped: replace the file instead.
        for target, source in (*built.items(), (module, next(build.glob("_native*.so")))):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            shutil.copy2(source, partial)
            os.replace(partial, target)
        for stale in {*libraries.glob("*.so"), *libraries.glob("*.partial")} - {*built}:
            stale.unlink()


setup(ext_modules=[Extension(PYBIND11_MODULE, sources=[])], cmdclass={"build_ext": CMakeBuild})
