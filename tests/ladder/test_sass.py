"""Limits on the machine code of every device kernel, and that what checks them can fail."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from tests.ladder import sass
from tests.ladder.operator import operators
from tests.ladder.sass import ARCHITECTURES, Row, broken

LIMITS = [*sass.SHARED_LIMITS, *(limit for operator in operators().values() for limit in operator.limits)]

PLANAR = Row(
    "dice_ce_loss_backward<float, 24, planar>",
    90,
    registers=168,
    spill_bytes=0,
    stack=0,
    shared=0,
    threads=128,
    counts={"ldg128": 24, "stg128": 24},
    calls={"div_s64": 1, "rcp_rn_f32_slowpath": 4},
)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def rows(request: pytest.FixtureRequest, architectures: tuple[int, ...]) -> list[Row]:
    if request.param not in architectures:
        pytest.skip("make ladder has every architecture")
    try:
        return sass.cuda_rows(request.param, compile_missing=False)
    except sass.MissingToolError as error:
        pytest.skip(str(error))


def test_cuda_kernels_keep_their_limits(rows: list[Row]) -> None:
    assert not broken(rows), "\n".join(broken(rows))


def test_every_kernel_of_the_source_is_in_the_library(rows: list[Row]) -> None:
    """And nothing is left out because its name was not understood."""
    written = {
        name.removesuffix("_kernel")
        for path in (sass.ROOT / "csrc" / "cuda").glob("*.cu*")
        for name in re.findall(r"__global__ void (?:__launch_bounds__\([^{;]*?\)\s+)?(\w+)\(", path.read_text())
    }
    assert len(written) >= 8
    assert {row.kernel.partition("<")[0] for row in rows} == written
    assert len({row.kernel for row in rows}) == len(rows)


def test_numbers_are_plausible(rows: list[Row]) -> None:
    """What the disassembler prints has been understood: a new version of it would give zeros."""
    for row in rows:
        assert 4 <= row.registers <= 255
        assert 1 <= row.threads <= 1024
        assert 0 <= row.shared < 48 << 10
        assert row.blocks >= 1
    held = {row.kernel: row for row in rows}["dice_ce_loss_forward<float, 24, planar>"]
    assert held.threads == 128
    # One exponential for each of 4 pixels and 24 classes, and a few functions for each pixel.
    assert 96 <= held.counts["mufu"] <= 3 * 96
    assert held.counts["ffma"] > 96
    assert {what for row in rows for what, count in row.counts.items() if count} >= {
        "ldg128",
        "stg128",
        "ldgsts",
        "lds128",
    }
    assert "div_s64" in {name for row in rows for name in row.calls}


@pytest.mark.timeout(1800)  # compiles them all: minutes, on a slow machine more than ten
def test_triton_kernels_keep_their_limits(architectures: tuple[int, ...]) -> None:
    pytest.importorskip("triton")
    try:
        rows = sass.triton_rows(architectures)
    except FileNotFoundError as error:
        pytest.skip(f"Triton's tools are not all there: {error}")
    assert {row.arch for row in rows} == set(architectures)
    assert not broken(rows), "\n".join(broken(rows))


def test_a_row_within_its_limits_passes() -> None:
    assert broken([PLANAR]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registers": 256}, "registers 256 > 255"),
        ({"spill_bytes": 8}, "spill_bytes 8 > 0"),
        ({"stack": 16}, "stack 16 > 0"),
        ({"counts": {"ldg128": 24, "stg128": 0}}, "stg128 0 < 8"),
        ({"counts": {"stg128": 24}}, "ldg128 0 < 8"),
        ({"calls": {"sin_slowpath": 2}}, "call of sin_slowpath"),
        ({"kernel": "another_op<float>"}, "no limit is stated for it"),
    ],
)
def test_a_row_beyond_a_limit_fails(change: dict[str, object], words: str) -> None:
    row = replace(PLANAR, **change)  # type: ignore[arg-type]
    assert broken([PLANAR, row]) == [f"{row.kernel} for sm_90: {words}"]


@pytest.mark.parametrize("kernel", ["dilated_conv (bfloat16)", "dilated_conv_grad_weight (grad_weight, float16)"])
def test_triton_products_for_sm_90_are_of_warp_groups(kernel: str) -> None:
    """HMMA, which would do for sm_80, leaves half of that processor's speed."""
    row = replace(PLANAR, kernel=f"triton {kernel}", registers=80, counts={"mma": 8, "stg128": 8}, calls={})
    assert broken([replace(row, arch=80), replace(row, arch=100)]) == []
    assert broken([row]) == [f"triton {kernel} for sm_90: hgmma 0 < 4"]
    assert broken([replace(row, counts={**row.counts, "hgmma": 4})]) == []


def test_limits_name_known_instructions_and_subroutines() -> None:
    assert {what for limit in LIMITS for arch in ARCHITECTURES for what in limit.required(arch)} <= set(
        sass._INSTRUCTIONS
    )
    assert {name for limit in LIMITS for name in limit.calls} <= set(sass.SUBROUTINES)


def test_bound_on_blocks() -> None:
    def blocks(**change: int) -> int:
        return replace(PLANAR, **change).blocks

    assert blocks(registers=168, threads=128) == 65536 // (168 * 128) == 3
    assert blocks(registers=161, threads=128) == 3, "registers are given in groups of 8"
    assert blocks(registers=16, threads=1024) == 2, "2048 threads"
    assert blocks(registers=16, threads=32) == 32
    assert blocks(registers=16, threads=32, shared=(227 << 10) // 4) == 3, "and 1 KB of each block is the system's"
    assert blocks(registers=16, threads=32, shared=40 << 10, arch=80) == 4


CODE = """
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2] ;
        /*0020*/                   LDG.E.64 R4, [R2] ;
        /*0030*/                   STG.E.128 [R2], R4 ;
        /*0040*/                   STL.64 [R1], R4 ;
        /*0050*/                   STL.S16 [R1+0x8], R4 ;
        /*0060*/              @!P0 STL [R1+0xc], R5 ;
        /*0070*/                   CALL.REL.NOINC `($__internal_3_$__cuda_sm20_div_s64) ;
        /*0080*/                   CALL.REL.NOINC `($_Z6kernelv$__cuda_sm70_warpsync) ;
        /*0090*/                   CALL.REL.NOINC `(.L_x_7) ;
        /*00a0*/                   I2F.U32.RP R4, R6 ;
        /*00b0*/                   FFMA.FTZ R1, R2, R3, R4 ;
        /*00c0*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*00d0*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*00e0*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
"""


def test_counts_of_instructions() -> None:
    expected = {"ldg128": 1, "ldg64": 1, "stg128": 1, "ldgsts": 1, "mma": 2, "hgmma": 1, "ffma": 1, "int_div": 1}
    assert sass.instructions(CODE) == dict.fromkeys(sass._INSTRUCTIONS, 0) | expected
    assert sass.spills(CODE) == 8 + 2 + 4
    assert sass.subroutines(CODE) == {"div_s64": 1, "warpsync": 1}


def test_short_names() -> None:
    if shutil.which("c++filt") is None:
        pytest.skip("c++filt (binutils) is not installed")
    mangled = [
        "_ZN6segops4cuda7dice_ce27dice_ce_loss_forward_kernelI13__nv_bfloat16Li24ELb0EEEvNS1_4PlanE",
        "_ZN6segops4cuda12_GLOBAL__N_120take_bad_data_kernelEPNS_7BadDataEl",
    ]
    assert sass.short_names(mangled) == ["dice_ce_loss_forward<bfloat16, 24, planar>", "take_bad_data"]


def test_report_is_a_table() -> None:
    other = replace(PLANAR, arch=80, calls={}, kernel="triton x (float32, 19 classes)")
    lines = sass.report([other, PLANAR]).splitlines()
    assert lines[2].startswith("| kernel | sm | regs |")
    assert lines[4].startswith(
        "| dice_ce_loss_backward<float, 24, planar> | 90 | 168 | 0 | 0 | 0 | 128 | 3 | 24 | 24 |"
    )
    assert lines[4].endswith("| 1 div_s64, 4 rcp_rn_f32_slowpath |")
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_missing_tools_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass.shutil, "which", lambda name: None)
    with pytest.raises(sass.MissingToolError, match=r"c\+\+filt"):
        sass.short_names(["f"])
    with pytest.raises(sass.MissingToolError, match="no_such_tool is neither on the PATH nor in"):
        sass._tool("no_such_tool")
    monkeypatch.setattr(sass, "LIBRARY", sass.ROOT / "absent.so")
    with pytest.raises(sass.MissingToolError, match="not built"):
        sass.cuda_rows(80)
