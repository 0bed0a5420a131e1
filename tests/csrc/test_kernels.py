"""The CPU kernels as other processors run them, without torch.

On arm64, in an emulator; and with AVX-512's vector width: the same source with 64-byte vectors, which the compiler
splits where the processor has none. That shows that the kernels' logic holds at that width, not the compiler's AVX-512
code.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import segops  # noqa: F401  registers the operators
from tests.cases import make_logits, random_labels

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "arm64": (["aarch64-linux-gnu-g++", "-O3", "-static"], ["qemu-aarch64"]),
    # -O1: vectors that are split anyway take minutes to compile for speed. What is out of the bounds of the fast way is
    # computed, and then thrown away, without undefined behaviour.
    "64-byte-vectors": (
        ["c++", "-O1", "-DSEGOPS_VECTOR_BYTES=64", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
        [],
    ),
}
PACKAGES = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user", "c++": "g++"}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def build(target: str, op: str, folder: Path) -> list[str]:
    """How to run the driver of an operator's kernels on the target."""
    compiler, emulator = TARGETS[target]
    for tool in (compiler[0], *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: {PACKAGES[tool]})")
    binary = folder / f"run_{op}"
    sources = [f"tests/csrc/run_{op}.cpp", f"csrc/cpu/{op}.cpp", "csrc/cpu/isa.cpp"]
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-DSEGOPS_ISA=baseline", "-DSEGOPS_ISA_IS_BASELINE", "-DSEGOPS_ONE_LEVEL"]
    subprocess.run(
        [*compiler, *flags, "-Icsrc/include", "-Icsrc/cpu", *sources, "-o", str(binary)], cwd=ROOT, check=True
    )
    return [*emulator, str(binary)]


@pytest.fixture(scope="module", params=TARGETS)
def command(request, tmp_path_factory):
    return build(request.param, "dice_ce_loss", tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("op", ["max_unpool", "confusion_matrix"])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_follow_their_definition(target, op, tmp_path):
    done = subprocess.run(build(target, op, tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_kernels_agree_with_the_library(command, tmp_path, dtype, layout):
    n, c, h, w = 2, 7, 19, 23
    logits = make_logits((n, c, h, w), dtype, "contiguous" if layout == "planar" else "channels_last")
    logits[0, :, 0, :5] = logits[0, :, 0, :5] * 40  # beyond the bounded range: the stable way
    target = random_labels((n, h, w), c, ignore_index=-100)
    grad_overlap = torch.randn(n, 3, c, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / (h * w)
    memory = logits if layout == "planar" else logits.movedim(1, -1)
    memory.contiguous().view(torch.uint8).numpy().tofile(tmp_path / "logits")
    target.numpy().tofile(tmp_path / "target")
    grad_overlap.numpy().tofile(tmp_path / "grad_overlap")

    arguments = [str(tmp_path), str(DTYPES.index(dtype)), str(n), str(c), str(h * w), layout]
    subprocess.run([*command, *arguments], check=True, timeout=300)

    def result(name: str, kind: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.frombuffer(bytearray((tmp_path / name).read_bytes()), dtype=kind).view(shape)

    ops = torch.ops.segops
    overlap, ce, *_ = ops.dice_ce_loss_statistics(logits, target, None, None, -100, 0.0, False, True, False, False, 0)
    grad_ce = torch.tensor([1 / ce[1].item(), 0.0], dtype=torch.float64)
    grad = ops.dice_ce_loss_backward(logits, target, None, None, grad_overlap, grad_ce, -100, 0.0, False)
    exact = dtype == torch.float64
    torch.testing.assert_close(
        result("overlap", torch.float64, (n, 3, c)), overlap, rtol=1e-13 if exact else 1e-6, atol=0
    )
    torch.testing.assert_close(result("ce", torch.float64, (2,)), ce, rtol=1e-13 if exact else 1e-6, atol=0)
    found = result("grad", dtype, tuple(grad.shape if layout == "planar" else grad.movedim(1, -1).shape))
    found = found if layout == "planar" else found.movedim(-1, 1)
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(found, grad, rtol=rtol, atol=1e-12 if exact else 1e-8)
