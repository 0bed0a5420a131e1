"""The guides of docs/guides run: each one's blocks, in order, in a folder with a few small images.

That on CamVid needs its images, and is in test_camvid.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segops.cli import app

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
SIDE = 48


def blocks(guide: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|bash)\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)


def environment() -> dict[str, str]:
    """That of a shell in which this Python's environment is activated, and this checkout is what it imports."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_data(folder: Path) -> None:
    """Images of a bright square; in my-data with two classes and no lists, and as maps with masks of saliency."""
    for name in ("my-data/images", "my-data/masks", "maps", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "my-data" / "classes.txt").write_text("ground\nsquare\n")
    names = [f"picture{i}" for i in range(5)]
    generator = np.random.default_rng(0)
    for i, name in enumerate(names):
        square = np.zeros((SIDE, SIDE), np.uint8)
        square[4 * i : 4 * i + 20, 10:34] = 1
        image = generator.integers(0, 100, (SIDE, SIDE, 3), np.uint8) + 150 * square[..., None]
        Image.fromarray(image.astype(np.uint8)).save(folder / "my-data" / "images" / f"{name}.png")
        Image.fromarray(square).save(folder / "my-data" / "masks" / f"{name}.png")
        Image.fromarray(image[..., 0].astype(np.uint8)).save(folder / "maps" / f"{name}.png")
        Image.fromarray(255 * square).save(folder / "masks" / f"{name}.png")


def run_command(words: list[str], folder: Path) -> str:
    """Run a line of a bash block; `segops` in this process, which saves importing torch for each."""
    if words[0] == "segops":
        result = CliRunner().invoke(app, words[1:])
        code, output, errors = result.exit_code, result.stdout, result.stderr
    else:
        done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
        code, output, errors = done.returncode, done.stdout, done.stderr
    assert code == 0, f"{shlex.join(words)}\n{output}\n{errors}"
    return output


def run_guide(guide: Path, folder: Path) -> str:
    """Run the blocks, of which those of Python share their names; what the commands print."""
    names: dict[str, object] = {}
    printed = ""
    for number, (language, code) in enumerate(blocks(guide), 1):
        if language == "python":
            exec(compile(code, f"{guide.name}, block {number}", "exec"), names)
            continue
        for command in code.replace("\\\n", " ").splitlines():
            printed += run_command(shlex.split(command), folder)
    return printed


@pytest.mark.parametrize(
    "guide", [guide for guide in GUIDES if guide.stem != "train-on-camvid"], ids=lambda guide: guide.stem
)
def test_guide_runs(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    if guide.stem == "several-processes":
        for split in ("train", "val"):
            (tmp_path / "my-data" / f"{split}.txt").write_text("\n".join(f"picture{i}" for i in range(4)))
    monkeypatch.chdir(tmp_path)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # remembered, and put back after what the guide sets
        monkeypatch.delenv(name)
    printed = run_guide(guide, tmp_path) + capsys.readouterr().out
    assert printed
    if guide.stem == "train-on-your-folder":
        assert {path.name for path in (tmp_path / "my-run").glob("*.pt")} == {"last.pt", "best.pt"}
        assert len(list((tmp_path / "my-labels").glob("*.png"))) == 10
    if guide.stem == "several-processes":
        assert "on 2 x cpu" in printed


def test_readme_links_every_guide() -> None:
    linked = set(re.findall(r"\(docs/guides/([\w-]+)\.md\)", (ROOT / "README.md").read_text()))
    assert GUIDES
    assert linked == {guide.stem for guide in GUIDES}
