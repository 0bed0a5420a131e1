"""`segops demo`: every stage runs, the numbers repeat, and what goes wrong is said in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import segops
from segops.engine import demo, op_table
from segops.engine.output import OutputDirectory, RunError
from tests.engine.command import Result, assert_stopped, run


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Result]]:
    """Two runs of the same command, into two directories that do not exist yet."""
    base = tmp_path_factory.mktemp("demo")
    return [(base / name / "out", run("demo", "--quick", "--out", base / name / "out")) for name in ("a", "b")]


def stop(*_: object, **__: object) -> None:
    raise AssertionError("must not be reached")


def test_the_quick_demo_goes_through_every_stage(quick_runs: list[tuple[Path, Result]]) -> None:
    operators = ("dice_ce_loss", "upsample_cat", "upsample_argmax", "max_unpool2d", "confusion_matrix")
    for out, result in quick_runs:
        assert result.exit_code == 0, result.output
        for part in ("12/12", "pixel accuracy", "mIoU", "prediction.png", "eager, one-hot", "speed-up", *operators):
            assert part in result.output
        assert sorted(os.listdir(out)) == sorted(demo.FILES)


def test_two_runs_give_the_same_numbers(quick_runs: list[tuple[Path, Result]]) -> None:
    (a, first), (b, second) = quick_runs
    for name in demo.FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name

    def numbers(result: Result) -> list[str]:
        return [
            line for line in result.output.splitlines() if line.strip().startswith(("Loss", "pixel accuracy", "mIoU"))
        ]

    assert len(numbers(first)) == 3
    assert numbers(first) == numbers(second)


def test_another_seed_gives_other_numbers(quick_runs: list[tuple[Path, Result]], tmp_path: Path) -> None:
    config = demo.DemoConfig(out=tmp_path, seed=1, steps=1, batch_size=4, size=48, val_scenes=8, rounds=1)
    demo.run_demo(config, Console(quiet=True))
    loss = json.loads((tmp_path / "metrics.json").read_text())["losses"][0]
    assert loss != json.loads((quick_runs[0][0] / "metrics.json").read_text())["losses"][0]


def test_the_pictures_are_pictures(quick_runs: list[tuple[Path, Result]]) -> None:
    out = quick_runs[0][0]
    for name, (width, height) in {"prediction.png": (1020, 600), "loss.png": (700, 400)}.items():
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
            assert picture.size == (width, height)
            assert len(set(picture.convert("RGB").getdata())) > 50


def test_the_record_holds_what_was_measured(quick_runs: list[tuple[Path, Result]]) -> None:
    out, result = quick_runs[0]
    record = json.loads((out / "metrics.json").read_text())
    assert f"{record['pixel_accuracy']:.4f}" in result.output
    assert f"{record['miou']:.4f}" in result.output
    assert len(record["losses"]) == record["steps"] == 12
    assert sum(record["losses"][-3:]) < sum(record["losses"][:3])
    known = [iou for iou in record["iou"].values() if iou is not None]
    assert list(record["iou"]) == list(segops.data.DigitScenes.classes)
    assert math.isclose(sum(known) / len(known), record["miou"])


def test_the_settings_of_the_caller_come_back(tmp_path: Path) -> None:
    def settings() -> tuple[object, ...]:
        memory: Any = torch.utils.deterministic
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            memory.fill_uninitialized_memory,
            torch.get_rng_state().sum().item(),
        )

    before = settings()
    seen = []

    def interrupt(*_: object) -> float:
        seen.append(settings())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "train_step", interrupt)
        run("demo", "--quick", "--out", tmp_path, "--threads", before[0] + 1)
    assert seen[0][:3] == (before[0] + 1, True, False)
    assert settings() == before


def test_an_output_directory_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "train_step", stop)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_stopped(run("demo", "--quick", "--out", out), 1, "cannot write to the output directory", str(out))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_stopped(run("demo", "--quick", "--out", tmp_path), 1, "Permission denied")


def test_too_little_disk_space_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "train_step", stop)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, (1 << 40) - (3 << 20), 3 << 20))
    assert_stopped(run("demo", "--quick", "--out", tmp_path), 1, "too little disk space", "3.0 MiB", "32 MiB")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").write_bytes(b"from before")
    output = OutputDirectory(tmp_path, ("a", "b", "c"))
    output.write("a", b"new")
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> None:
        write_bytes(path, content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError) as caught:
        output.write("b", b"new")
    assert str(tmp_path / "b") in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert f"written to {tmp_path}: a; not written: b, c" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"from before"


def test_a_write_that_fails_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "loss.png").mkdir()
    result = run("demo", "--quick", "--steps", 1, "--out", tmp_path)
    assert_stopped(result, 1, "loss.png", "prediction.png; not written: loss.png, metrics.json")


def test_an_interruption_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step, calls = demo.train_step, []

    def interrupt_the_third(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(demo, "train_step", interrupt_the_third)
    result = run("demo", "--quick", "--out", tmp_path)
    assert_stopped(result, 130, "interrupted", "nothing; not written: prediction.png, loss.png, metrics.json")
    assert len(calls) == 3
    assert os.listdir(tmp_path) == []


def test_an_interruption_after_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(op_table, "compare", interrupt)
    result = run("demo", "--quick", "--steps", 1, "--out", tmp_path)
    assert_stopped(result, 130, "prediction.png, loss.png, metrics.json; not written: nothing")


def entry(function: op_table.Operator) -> op_table.Entry:
    return op_table.Entry(
        operator="square",
        what="forward",
        inputs=lambda generator: (torch.randn(50, generator=generator),),
        segops=function,
        pytorch={"pow": lambda x: (x.pow(2),), "slow": lambda x: (sum(x * x for _ in range(500)) / 500,)},
        reference=lambda x: (x * x,),
    )


def test_the_table_tells_right_from_wrong() -> None:
    right = op_table.compare(entry(lambda x: (x * x,)), rounds=9)
    assert right.correct
    assert right.shape == (50,)
    assert list(right.pytorch) == ["pow", "slow"]
    assert right.pytorch["slow"].seconds > 5 * right.segops.seconds
    for wrong in (lambda x: (x * x * (1 + 1e-5),), lambda x: (x * x / 0 * 0,)):
        assert not op_table.compare(entry(wrong), rounds=1).correct

    def text(comparison: op_table.Comparison) -> str:
        console = Console(width=100, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(op_table.render([comparison]))
        return console.export_text()

    assert "WRONG" not in text(right)
    assert re.search(r"\d\.\dx", text(right))
    shown = text(op_table.compare(entry(lambda x: (x + x,)), rounds=1))
    assert "WRONG" in shown
    assert not re.search(r"\d\.\dx", shown)


def test_a_wrong_operator_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_table, "ENTRIES", (entry(lambda x: (x + x,)),))
    assert_stopped(run("demo", "--quick", "--steps", 1, "--out", tmp_path), 1, "square (forward)", "float64")


@pytest.mark.parametrize("model", ["hourglass2", "u2netp"])
def test_any_network_learns_from_all_its_outputs(model: str, tmp_path: Path) -> None:
    config = demo.DemoConfig(out=tmp_path, model=model, steps=2, batch_size=2, val_scenes=2, rounds=1)
    network = demo.network(config)
    before = [p.clone() for p in network.parameters()]
    demo.train(network, config, Console(quiet=True))
    still = [name for (name, p), q in zip(network.named_parameters(), before, strict=True) if torch.equal(p, q)]
    assert not still


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [(("--model", "segnot"), ("segnot", "segnet")), (("--model", "dilation8_voc"), ("187 x 187", "64 x 64"))],
)
def test_a_network_that_cannot(arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    assert_stopped(run("demo", *arguments, "--out", tmp_path / "out"), 2, *parts)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps(steps: int, tmp_path: Path) -> None:
    config = demo.DemoConfig(out=tmp_path, steps=steps, batch_size=1, size=48)
    assert len(demo.train(demo.network(config), config, Console(quiet=True))) == steps


def test_info_prints_the_configuration() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert result.output.strip() == segops.show_config().strip()


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("typer", "info"), ("rich", "info"), ("matplotlib", "demo --quick"), ("sklearn", "demo --quick")],
)
def test_a_missing_package_is_told_in_one_line(missing: str, arguments: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
sys.argv[1:] = {arguments.split()}
from segops.cli import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert missing in ran.stderr
    assert "pip install 'segops[demo]'" in ran.stderr


def test_python_m_segops_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "segops", "info"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("segops ")
