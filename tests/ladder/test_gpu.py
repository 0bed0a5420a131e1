"""The command for a GPU as far as it can be tested without one: a dry run, and that neither can be fooled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import compare, interleave
from tests.ladder import gpu
from tests.ladder.gpu import FAILED, LEFT_OUT, PASSED, Outcome, Part

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")


def code(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def part(name: str, command: tuple[str, ...], **options: object) -> Part:
    return Part(name, command, gpu.by_status, **options)  # type: ignore[arg-type]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    shutil.copytree(gpu.SAMPLE, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    status = gpu.main(["--dry-run"])
    text = capsys.readouterr().out
    assert status == 0, text
    for command in (
        "-m pytest -p no:cacheprovider tests --device cuda --junitxml=segops-gpu-report/tests.xml",
        "compute-sanitizer --tool racecheck --kernel-regex kns=dice_ce_loss",
        "-m pytest -p no:cacheprovider benchmarks --bench-device cuda",
        "-m benchmarks.compare segops-gpu-report/benchmarks.json",
    ):
        assert command in text
    if shutil.which("compute-sanitizer") is None:
        assert "compute-sanitizer is not installed here: the part would be left out" in text
    assert text.count("selects ") == 2 + len(gpu.SANITIZERS) * len(gpu.SELECTIONS)
    assert text.rstrip().endswith("everything is in place")


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        (part("x", (*PYTEST, "tests/nn", "--device", "cuda", "-k", "no_such_test"), collects=True), "selects no test"),
        (part("x", (*PYTEST, "tests/nn", "--device", "tpu"), collects=True), "invalid choice: 'tpu'"),
        (part("x", (*PYTEST, "tests/no_such_folder"), collects=True), "no_such_folder"),
        (part("x", ("no-such-program", "--help")), "no-such-program does not exist"),
        (part("x", (sys.executable, "-m", "benchmarks.no_such_module")), "No module named benchmarks.no_such_module"),
        (part("x", code("import no_such_module")), "No module named 'no_such_module'"),
    ],
)
def test_dry_run_finds_what_could_not_work(planted: Part, words: str, tmp_path: Path) -> None:
    lines = gpu.check(planted, gpu.collect([planted], tmp_path) if planted.collects else {})
    assert any(words in line and not fine for line, fine in lines), lines


def test_dry_run_without_an_optional_program() -> None:
    (line,) = gpu.check(part("x", ("no-such-program",), optional=True), {})
    assert line == ("no-such-program is not installed here: the part would be left out", True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([str(tmp_path / "report")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "finds no CUDA device (--dry-run needs none)" in err
    assert not (tmp_path / "report").exists()


def test_every_part_runs_whatever_fails(tmp_path: Path) -> None:
    chosen = [
        part("broken", code("import sys; print('it | broke'); sys.exit(3)")),
        part("absent", ("no-such-program",)),
        part("optional", ("no-such-program",), optional=True),
        part("slow", code("import time; time.sleep(60)"), minutes=0),
        part("last", code("print('done in {folder}')")),
    ]
    assert gpu.run_all(chosen, tmp_path) == 1
    page = (tmp_path / "summary.md").read_text()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "| FAILED |" in rows["broken"]
    assert rows["broken"].endswith(r"exit status 3: it \| broke |")
    assert "| FAILED |" in rows["absent"]
    assert f"| {LEFT_OUT} |" in rows["optional"]
    assert "not done after 0 minutes" in rows["slow"]
    assert f"| {PASSED} |" in rows["last"]
    assert "Failed: broken, absent, slow." in page
    assert (tmp_path / "last.log").read_text() == f"done in {tmp_path}\n"


def test_all_well_is_status_0(tmp_path: Path) -> None:
    assert gpu.run_all([part("one", code("")), part("two", ("no-such-program",), optional=True)], tmp_path) == 0
    assert "No part failed." in (tmp_path / "summary.md").read_text()


def test_environment_of_the_caller_does_not_change_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SEGOPS_BACKEND", "reference")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k nothing")
    environment = gpu.environment_of(Part("x", (), gpu.by_status, environment=(("A", "1"),)))
    assert not {"TRITON_INTERPRET", "SEGOPS_BACKEND", "PYTEST_ADDOPTS"} & environment.keys()
    assert environment["A"] == "1"
    assert "PATH" in environment


def junit(folder: Path, *cases: str) -> None:
    (folder / "tests.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")


def case(name: str, inside: str = "") -> str:
    return f'<testcase classname="tests.ops.test_x" name="{name}">{inside}</testcase>'


def test_tests_are_judged_by_what_ran(tmp_path: Path) -> None:
    native, triton = case("test_a[native-1]"), case("test_a[triton-1]")
    junit(tmp_path, native, triton, case("test_b", "<skipped/>"))
    assert gpu.by_junit(0, tmp_path, "") == (PASSED, "2 passed, 1 skipped")
    assert gpu.by_junit(1, tmp_path, "")[0] == FAILED
    junit(tmp_path, native, triton, case("test_b", "<failure/>"))
    assert gpu.by_junit(0, tmp_path, "") == (FAILED, "2 passed, 1 failed")
    junit(tmp_path, native, case("test_a[triton-1]", "<skipped/>"))
    assert gpu.by_junit(0, tmp_path, "") == (FAILED, "1 passed, 1 skipped; no test of triton has run")
    (tmp_path / "tests.xml").unlink()
    assert gpu.by_junit(2, tmp_path, "")[0] == FAILED


def test_sanitizers_are_judged_by_their_summaries(tmp_path: Path) -> None:
    def judge(text: str, status: int = 0) -> str:
        return gpu.by_sanitizer(status, tmp_path, text)[0]

    clean = "3 passed in 1s\n========= ERROR SUMMARY: 0 errors\n"
    assert judge(clean) == PASSED
    assert judge("3 passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)") == PASSED
    assert judge(clean, 9) == FAILED
    assert judge("3 passed\n========= ERROR SUMMARY: 10 errors") == FAILED
    assert judge(clean + "========= ERROR SUMMARY: 2 errors") == FAILED, "of a second process"
    assert judge("3 skipped\n========= ERROR SUMMARY: 0 errors") == FAILED, "nothing ran"
    assert judge("3 passed") == FAILED, "the sanitizer did not"
    assert judge("3 passed\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)") == FAILED


def test_summary_of_recorded_results(sample: Path) -> None:
    line, fine = gpu.check_summary(sample)
    assert fine, line


@pytest.mark.parametrize("name", ["tests.xml", "memcheck-upsample.log", "benchmarks.json", "device.log"])
def test_summary_lacks_what_was_not_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = shutil.copytree(gpu.SAMPLE, tmp_path / "recorded")
    (recorded / name).unlink()
    monkeypatch.setattr(gpu, "SAMPLE", recorded)
    (tmp_path / "report").mkdir()
    assert not gpu.check_summary(tmp_path / "report")[1]


def test_summary_names_the_tests_that_failed(sample: Path) -> None:
    failures = [case(f"test_a[{i}]", "<failure/>") for i in range(gpu.MOST_NAMES + 3)]
    junit(sample, *failures)
    page = gpu.summary([Outcome(part("tests", ()), FAILED, "", 0.0)], sample)
    assert "* `tests.ops.test_x::test_a[0]`" in page
    assert f"test_a[{gpu.MOST_NAMES}]" not in page
    assert "* and 3 more: tests.xml" in page


def test_tables_of_a_device() -> None:
    run = json.loads((gpu.SAMPLE / "benchmarks.json").read_text())
    text = compare.report(run)
    assert "### dice_ce_loss, cuda\n" in text
    floor = 88.1  # MB, in 0.2 ms by the CUDA kernels and 0.3 ms by the Triton kernels
    assert f"| (4, 19, 512, 512) float32 contiguous | forward | {floor} | {floor} | 440 | 1000 | 44% |" in text
    assert f"| (4, 19, 512, 512) float32 contiguous, Triton | forward | {floor} | {floor} | 294 | 1000 | 29% |" in text
    assert text.splitlines()[-1].startswith("Regime: cuda; example device (sm_90")


def test_device_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the timed calls and the flush advance, in milliseconds."""
    now = 0.0
    happened: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now
            happened.append("record")

        def elapsed_time(self, other: Event) -> float:
            assert happened[-1] == "synchronize"
            return other.at - self.at

    def advance(what: str, milliseconds: float) -> None:
        nonlocal now
        now += milliseconds
        happened.append(what)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("synchronize"))
    flush = SimpleNamespace(zero_=lambda: advance("flush", 100.0))
    seconds = interleave._device_seconds(flush, lambda: advance("call", 2.0), 3)  # type: ignore[arg-type]
    assert seconds == pytest.approx(2e-3)
    assert happened == ["flush", "record", "call", "record"] * 3 + ["synchronize"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_benchmarks_refuse_a_missing_device() -> None:
    command = (*PYTEST, "benchmarks", "--bench-device", "cuda", "-q")
    done = subprocess.run(command, cwd=gpu.ROOT, env=gpu.environment_of(part("", ())), capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "finds no CUDA device" in done.stderr


def test_sanitized_kernels_are_ours() -> None:
    """Kernels are chosen by their names: those of csrc/cuda and of segops/triton must have the word in them."""
    word = next(word for p in gpu.parts() for word in p.command if word.startswith("kns=")).removeprefix("kns=")
    written = (gpu.ROOT / "csrc" / "cuda" / "dice_ce_loss.cu").read_text()
    assert f"{word}_forward_kernel" in written
    assert f"def {word}_" in (gpu.ROOT / "segops" / "triton" / "dice_ce_loss_tile.py").read_text()
    assert all(replace(p, command=()).optional for p in gpu.parts() if p.name.startswith(gpu.SANITIZERS))
