"""What was built, and what the tree promises: symbols, dependencies, completeness, budgets."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import segops
from segops import _library
from tests.cpu import words_with_instruction_set
from tests.test_cuda_library import OF_THE_CPU_ALONE

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ROOT / "segops" / "lib"
EXPORTS = Path(__file__).with_name("torch_2_11_exports.txt")
OPS = (
    "dice_bce_loss",
    "dice_ce_loss",
    "upsample_bilinear",
    "upsample_nearest",
    "upsample_argmax",
    "max_unpool",
    "confusion_matrix",
    "dilated_conv",
)
#: Operators of segops.metrics alone, of which other devices have a spelling in tensors; not public.
OF_METRICS = ("mask_overlaps", "saliency_maps")
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".toml", ".txt"}


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.splitlines() if (path := ROOT / name).is_file()]


def undefined_symbols(library: Path) -> dict[str, str]:
    """Name -> kind (U, or w for weak) of what `library` expects from elsewhere."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    listed = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    return {name.split("@")[0]: kind for kind, name in (line.split()[-2:] for line in listed.splitlines())}


def needed(library: Path) -> set[str]:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    listed = subprocess.run(["readelf", "--dynamic", str(library)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", listed))


def built_libraries() -> list[Path]:
    return sorted(LIBRARIES.glob("libsegops*.so"))


def test_cpu_library_is_loaded():
    assert _library.cpu_unavailable is None
    assert segops.backends.resolve(None, torch.device("cpu")) == "native"


@pytest.mark.parametrize("library", built_libraries(), ids=lambda path: path.name)
class TestAbi:
    def test_needs_only_names_that_torch_2_11_exports(self, library):
        exported = set(EXPORTS.read_text().split())
        from_torch = {name for name in undefined_symbols(library) if name.startswith(("aoti_torch_", "torch_"))}
        assert from_torch <= exported, sorted(from_torch - exported)

    def test_needs_nothing_of_torch_beyond_its_stable_interface(self, library):
        unstable = [name for name in undefined_symbols(library) if re.search(r"2at|3c10|5torch", name)]
        assert not unstable

    def test_expects_no_weak_symbols_of_torch_or_cuda(self, library):
        weak = [name for name, kind in undefined_symbols(library).items() if kind in "wv"]
        assert not [name for name in weak if "torch" in name or "cuda" in name]


def test_symbol_audit_can_fail(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler")
    library = tmp_path / "libplanted.so"
    code = "namespace at { void planted(); } void f() { at::planted(); }"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)], input=code, text=True, check=True
    )
    assert any(re.search(r"2at", name) for name in undefined_symbols(library))


def test_dependencies_of_the_cpu_library():
    libraries = needed(LIBRARIES / "libsegops.so")
    assert "libtorch_cpu.so" in libraries
    # No thread pool of its own, no ATen, no CUDA: only torch's CPU library and the compiler's runtime.
    assert {name for name in libraries if re.match(r"lib(torch|c10|gomp|cuda)", name)} == {"libtorch_cpu.so"}


def test_cuda_library_is_built_where_nvcc_is():
    library = LIBRARIES / "libsegops_cuda.so"
    if shutil.which("nvcc") is None or os.environ.get("SEGOPS_CUDA") == "off":
        pytest.skip("no nvcc, so no CUDA library")
    assert library.exists()
    assert "libtorch_cuda.so" in needed(library)
    assert not {name for name in needed(library) if name.startswith("libcudart")}, "cudart is linked statically"


def test_cuda_library_loads_into_a_torch_with_cuda():
    if not (LIBRARIES / "libsegops_cuda.so").exists():
        pytest.skip("the CUDA library is not built here")
    if torch.version.cuda is None:
        assert _library.cuda_unavailable == "this torch has no CUDA"
        return
    import ctypes

    assert _library.cuda_unavailable is None
    archs = ctypes.CDLL(str(LIBRARIES / "libsegops_cuda.so")).segops_cuda_archs
    archs.restype = ctypes.c_char_p
    assert all(arch.isdigit() for arch in archs().decode().split())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have the baseline only")
def test_kernels_are_compiled_for_every_level():
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    objects = {
        level: list(ROOT.glob(f"build/cmake-*/CMakeFiles/segops_{level}.dir/csrc/cpu/*.o"))
        for level in ("baseline", "v3", "v4")
    }
    if not all(objects.values()):
        pytest.skip("the build folder is not here")
    registers = {
        level: {
            register
            for path in paths
            for register in re.findall(
                r"%([xyz]mm)\d", subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True).stdout
            )
        }
        for level, paths in objects.items()
    }
    assert "zmm" in registers["v4"]
    assert "ymm" in registers["v3"]
    assert "zmm" not in registers["v3"]
    assert registers["baseline"] == {"xmm"}


def test_level_can_be_chosen():
    code = "import segops; print(segops._library.native.cpu_isa())"
    for level in _library.native.cpu_isas():
        assert words_with_instruction_set(level, "-c", code) == [level]


def missing_of(op: str) -> list[str]:
    """What the tree lacks of an op, by the list "Adding an op" of CONTRIBUTING.md."""
    files = (
        f"csrc/include/segops/{op}.h",
        f"csrc/cpu/{op}.cpp",
        f"csrc/cuda/{op}.cu",
        f"csrc/torch/{op}.cpp",
        f"segops/ops/{op}.py",
        f"segops/reference/{op}.py",
        f"segops/triton/{op}.py",
        f"tests/ops/test_{op}.py",
        f"tests/csrc/simt_{op}.cpp",
        f"tests/ladder/ops/{op}.py",
        f"tests/triton/calls_{op}.py",
        f"benchmarks/bench_{op}.py",
        f"docs/kernels/{op}.md",
    )
    lines = {
        "CMakeLists.txt": files[1:4],
        "csrc/cuda/launch.h": (f'#include "segops/{op}',),
        "segops/__init__.py": (f"from segops.ops.{op} import",),
        "segops/ops/__init__.py": (f"from segops.ops.{op} import",),
        "segops/triton/__init__.py": (f'": "{op}.',),
        "mkdocs.yml": (f"kernels/{op}.md",),
    }
    absent = [f"no file {path}" for path in files if not (ROOT / path).is_file()]
    for path, wanted in lines.items():
        text = (ROOT / path).read_text()
        absent += [f"{path} has no line with {line}" for line in wanted if line not in text]
    return absent


@pytest.mark.parametrize("op", OPS)
def test_nothing_of_an_op_is_missing(op):
    missing = missing_of(op)
    assert not missing, "\n".join(["CONTRIBUTING.md, Adding an op:", *missing])


def test_what_is_missing_of_an_op_is_named():
    missing = missing_of("no_such_op")
    assert "no file csrc/cuda/no_such_op.cu" in missing
    assert "CMakeLists.txt has no line with csrc/cuda/no_such_op.cu" in missing
    assert len(missing) == 21


@pytest.mark.parametrize("op", OF_METRICS)
def test_every_file_of_an_op_of_metrics_exists(op):
    for path in (
        f"csrc/include/segops/{op}.h",
        f"csrc/cpu/{op}.cpp",
        f"csrc/torch/{op}.cpp",
        f"segops/ops/{op}.py",
        f"segops/metrics/{op}.py",
        f"tests/metrics/test_{op}.py",
        f"docs/kernels/{op}.md",
    ):
        assert (ROOT / path).is_file(), path
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert f"csrc/cpu/{op}.cpp" in cmake
    assert f"csrc/torch/{op}.cpp" in cmake
    assert op not in segops.__all__


def test_every_op_is_listed_here():
    pages = {path.stem for path in (ROOT / "segops" / "ops").glob("*.py") if "define_op(" in path.read_text()}
    parts = {page for page in pages for op in OPS if page.startswith(f"{op}_")}
    unlisted = pages - parts - {*OPS, *OF_METRICS}
    assert not unlisted, f"{sorted(unlisted)} of segops/ops must be in OPS of tests/test_build.py"


@pytest.mark.parametrize("namespace", ["segops", "segops_simt", "segops_triton"])
def test_every_operator_has_a_kernel_in_every_namespace(namespace):
    if namespace == "segops_simt" and _library.simt_unavailable is not None:
        pytest.skip(_library.simt_unavailable)
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{namespace}::")}
    without = {name for name in names if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")}
    # Records of bad data are kept by devices, in the library of the CUDA kernels.
    records, of_the_cpu = {"note_bad_data", "take_bad_data"}, set(OF_THE_CPU_ALONE)
    others = {"segops": records, "segops_simt": of_the_cpu, "segops_triton": records | of_the_cpu}[namespace]
    forgotten = sorted(without - {f"{namespace}::{name}" for name in others})
    place = "OPERATORS of segops/triton/__init__.py" if namespace == "segops_triton" else "m.impl of csrc/torch"
    assert not forgotten, f"{forgotten} have a schema and no kernel: {place}"


def test_no_source_file_is_over_500_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix in SOURCE_SUFFIXES and (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_import_stays_light():
    code = (
        "import sys, torch; before = set(sys.modules); import segops; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"sklearn", "matplotlib", "PIL", "rich", "typer", "torchvision", "monai", "scipy", "pandas"}
    assert not heavy & set(run.stdout.split())


def test_importing_takes_less_than_twice_as_long_as_torch():
    code = (
        "from time import perf_counter as now; start = now(); import torch; middle = now(); import segops; "
        "print((now() - middle) / (middle - start))"
    )
    more = []
    for _ in range(4):  # a busy machine can hold up either import, but not the same one each time
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        more.append(float(run.stdout))
        if more[-1] < 1:
            return
    pytest.fail(f"import segops takes {1 + min(more):.2f} times as long as import torch")


def run_setup(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """build_ext of a copy of the build files, so that nothing of this checkout is touched."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "segops").mkdir()
    shutil.copy(ROOT / "segops" / "__init__.py", tmp_path / "segops")
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_missing_compiler_is_named(tmp_path):
    run = run_setup(tmp_path, CXX="no-such-compiler")
    assert run.returncode != 0
    assert "no C++ compiler ('no-such-compiler' is not on the PATH)" in run.stderr


def test_too_old_torch_is_named(tmp_path):
    fake = tmp_path / "site"
    (fake / "torch").mkdir(parents=True)
    (fake / "torch" / "__init__.py").write_text("")
    (fake / "torch-2.9.1.dist-info").mkdir()
    (fake / "torch-2.9.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n")
    source = tmp_path / "source"
    source.mkdir()
    run = run_setup(source, PYTHONPATH=str(fake))
    assert run.returncode != 0
    assert "torch >= 2.11" in run.stderr
    assert "2.9.1" in run.stderr


def test_too_old_torch_is_named_at_import():
    code = "import torch; torch.__version__ = '2.10.0'; import segops"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert "segops needs torch >= 2.11, found 2.10.0" in run.stderr


def test_missing_library_leaves_the_reference_and_says_why(tmp_path):
    package = tmp_path / "segops"
    shutil.copytree(ROOT / "segops", package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "lib"))
    code = (
        "import torch, segops\n"
        "x, t = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64)\n"
        "print(segops.dice_ce_loss(x, t).item())\n"
        "segops.dice_ce_loss(x, t, backend='native')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert float(run.stdout) > 0
    assert "backend 'native' cannot run on cpu tensors: libsegops.so is not built" in run.stderr
