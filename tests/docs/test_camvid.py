"""The guide to training on CamVid: its commands, with fewer images and steps, twice."""

from __future__ import annotations

import csv
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.test_guides import ROOT, blocks, run_command
from tests.metrics.data import DATA

GUIDE = ROOT / "docs" / "guides" / "train-on-camvid.md"
FOLDERS = {"train": 7, "trainannot": 7, "val": 4, "valannot": 4}  # of which the guide takes every third
LESS = (
    "--epochs",
    "2",
    "--warmup",
    "1",
    "--val-every",
    "1",
    "--log-every",
    "1",
    "--batch-size",
    "2",
    "--pictures",
    "1",
)


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The guide's blocks in `folder`; what its last one prints, the digest of the weights."""
    for name, count in FOLDERS.items():
        (folder / "my-camvid" / name).mkdir(parents=True)
        for path in sorted((DATA / "camvid" / name).glob("*.png"))[:count]:
            shutil.copyfile(path, folder / "my-camvid" / name / path.name)
    names: dict[str, object] = {}
    for language, code in blocks(GUIDE):
        capsys.readouterr()
        if language == "python":
            exec(compile(code, GUIDE.name, "exec"), names)
            continue
        for command in code.replace("\\\n", " ").splitlines():
            words = shlex.split(command)
            run_command([*words, *LESS] if words[1] == "train" else words, folder)
    return capsys.readouterr().out


def records(path: Path) -> list[dict[str, Any]]:
    """The lines, without the speed."""
    with path.open() as file:
        return [
            {name: value for name, value in line.items() if name != "images_per_second"}
            for line in csv.DictReader(file)
        ]


def test_two_runs_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (DATA / "camvid").is_dir():
        pytest.skip(f"no camvid in {DATA} (set SEGOPS_TEST_DATA)")
    threads = torch.get_num_threads()
    folders, digests = [tmp_path / "first", tmp_path / "second"], []
    try:
        for folder in folders:
            folder.mkdir()
            monkeypatch.chdir(folder)
            digests.append(run(folder, capsys))
    finally:
        torch.set_num_threads(threads)
    first, second = (folder / "my-run" for folder in folders)
    assert len(digests[0].strip()) == 64
    assert digests[0] == digests[1]
    assert records(first / "train.csv") == records(second / "train.csv")
    assert len(records(first / "train.csv")) == 4
    for name in ("val.csv", "scores.json", "pictures"):
        one, other = first / name, second / name
        pairs = zip(sorted(one.iterdir()), sorted(other.iterdir()), strict=True) if one.is_dir() else [(one, other)]
        assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)
    before, after = (torch.load(first / name, weights_only=True)["training"]["step"] for name in ("best.pt", "last.pt"))
    assert 0 < before <= after == 4
