"""Other builds of the same source: sanitizers, the portable switch, nvcc, and what must not compile."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.simt.build import COMMON, HERE, KERNELS, ROOT, VARIANTS, includes


def run(built, variant: str, case: str) -> subprocess.CompletedProcess[str]:
    # Threads that are left in the middle of a kernel never free what they hold.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [*VARIANTS[variant].emulator, str(built(variant)), case],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("variant", ["asan", "ucontext", "arm64"])
def test_correct_kernels(built, variant):
    done = run(built, variant, "right")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("case", "findings"),
    [
        ("shared", ["index 32 out of bounds for type 'float [32]'"]),
        ("dynamic-shared", ["heap-buffer-overflow", "bytes to the right of 3968-byte region"]),
        ("global-read", ["heap-buffer-overflow", "0 bytes to the right of 4096-byte region"]),
        ("global-write", ["heap-buffer-overflow", "0 bytes to the right of 128-byte region"]),
        ("overflow", ["signed integer overflow"]),
    ],
)
def test_sanitizers_see_one_past_the_end_and_overflow(built, case, findings):
    done = run(built, "asan", case)
    assert done.returncode != 0
    for finding in [*findings, "broken.cu:"]:
        # What newer compilers call it.
        assert finding in done.stderr or finding.replace("to the right of", "after") in done.stderr


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_nvcc_compiles_the_same_files(tmp_path, kernels, architecture):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = ["nvcc", "-std=c++20", f"-arch={architecture}", "-Werror", "all-warnings", "-Icsrc/cuda", "-cubin"]
    command += [str(HERE / kernels), "-o", str(tmp_path / "cubin")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "compiles"),
    [
        ("SHARED_ARRAY(float, x, 32); x[0] = 0; SYNC_THREADS(); SYNC_WARP();", True),
        ("__shared__ float x[32];", False),
        ("__syncthreads();", False),
        ("__syncwarp();", False),
    ],
)
def test_what_means_nothing_to_a_host_compiler_does_not_compile(tmp_path, line, compiles):
    source = tmp_path / "kernel.cu"
    source.write_text(f'#include "device.cuh"\n__global__ void kernel() {{ {line} }}\n')
    command = ["g++", *COMMON, *includes(), "-fsyntax-only", "-x", "c++", str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == compiles, done.stderr
    assert compiles or "poisoned" in done.stderr
