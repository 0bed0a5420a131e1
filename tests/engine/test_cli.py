"""The subcommands train, evaluate, predict, models and bench: what they write, and how they fail."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import segops
from segops.cli import app
from segops.engine import checkpoint, datasets
from segops.engine import trainer as loop
from segops.models import registry
from tests.engine import toy
from tests.engine.command import assert_stopped, run
from tests.models.plain.unet import UNet


class FewDigits(segops.data.DigitScenes):
    num_classes, ignore_index = 11, None


open_split = datasets.open_split


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A network "toy" among the published ones, and few scenes of digits, so that a run takes a second."""
    family = types.ModuleType("segops.models.toy")
    entry = registry.Entry(
        lambda classes, in_channels, **options: toy.Toy(classes=classes, **options),
        lambda state: state,
        lambda state: {},
    )
    family.MODELS = {"toy": entry}  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "segops.models.toy", family)
        patch.setitem(registry.FAMILIES, "toy", ("toy",))
        patch.setattr(datasets, "open_split", lambda name, root, split: FewDigits(split, 6, (32, 40)))
        yield


TRAIN = ("train", "--model", "toy", "--steps", 4, "--batch-size", 2, "--log-every", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("train") / "run"
    return out, run(*TRAIN, "--out", out, "--model-options", "dropout=0.2", "--pictures", 2)


def test_train_writes_everything(trained: tuple[Path, Any]) -> None:
    out, result = trained
    assert result.exit_code == 0, result.output
    assert {p.name for p in out.iterdir()} == {"last.pt", "best.pt", "train.csv", "val.csv", "pictures"}
    for part in ("toy, ", "11 classes", "step 0 of 4", "4/4", "images/s", "mIoU", str(out)):
        assert part in result.output
    held = checkpoint.load(out / "last.pt")
    assert held.model == checkpoint.ModelSpec("toy", 11, 3, {"dropout": 0.2})
    assert held.config["steps"] == 4
    assert list(held.classes.names) == list(segops.data.DigitScenes.classes)


def test_train_does_not_write_over_a_run(trained: tuple[Path, Any]) -> None:
    before = (trained[0] / "last.pt").read_bytes()
    assert_stopped(run(*TRAIN, "--out", trained[0]), 1, "holds a run", "--resume")
    assert (trained[0] / "last.pt").read_bytes() == before


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    assert run(*TRAIN, "--out", tmp_path / "a", "--pictures", 0).exit_code == 0
    (tmp_path / "a").rename(tmp_path / "b")
    result = run("train", "--resume", tmp_path / "b", "--steps", 6)
    assert result.exit_code == 0, result.output
    assert "step 4 of 6" in result.output
    assert checkpoint.load(tmp_path / "b" / "last.pt").training["step"] == 6


def test_settings_from_a_file_give_way_to_options(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"model: toy\nsteps: 9\nbatch_size: 2\nout: {tmp_path / 'out'}\npictures: 0\nscale: [0.8, 1.2]\n")
    result = run("train", "--config", file, "--steps", 2, "--crop", "16,24", "--no-flip")
    assert result.exit_code == 0, result.output
    held = checkpoint.load(tmp_path / "out" / "last.pt").config
    assert (held["steps"], held["batch_size"], held["crop"], held["flip"]) == (2, 2, [16, 24], False)
    file.write_text("stepz: 9")
    assert_stopped(run("train", "--config", file), 2, "a.yaml", "unknown setting 'stepz'")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "expected"),
    [
        (("train", "--stepz", 3), 2, "No such option: --stepz"),
        (("train", "--lr", "fast"), 2, "lr must be a number, got 'fast'"),
        (("train", "--crop", "5"), 2, "crop must be a list of 2 whole numbers or null, got [5]"),
        (("train", "--schedule", "step"), 2, "schedule must be 'poly' or 'cosine' or 'constant'"),
        (("train", "--model-options", "a"), 2, "model_options must be name=value, got 'a'"),
        (("train", "--config", "none.yaml"), 1, "cannot read none.yaml: No such file"),
        (("train", "--resume", "none.pt"), 1, "cannot read the checkpoint none.pt: No such file"),
        (("train", "--device", "moon"), 2, "device must be auto, cpu, cuda or cuda:N, got 'moon'"),
        (("evaluate",), 2, "CHECKPOINT"),
        (("evaluate", "none.pt"), 1, "cannot read the checkpoint none.pt: No such file"),
        (("evaluate", __file__), 1, "is not a checkpoint"),
        (("predict", "a.png"), 2, "--checkpoint"),
        (("bench", "soap"), 2, "there is no operator 'soap'"),
        (("fly",), 2, "No such command 'fly'"),
    ],
)
def test_one_line_and_an_exit_code(arguments: Any, exit_code: int, expected: str) -> None:
    assert_stopped(run(*arguments), exit_code, expected)


def test_a_network_that_is_not_there_and_wrong_options(tmp_path: Path) -> None:
    for options, code, message in (
        (("--model", "nonet"), 1, "there is no network 'nonet'"),
        (("--model-options", "wings=2"), 1, "wings"),
        (("--num-classes", 5), 2, "num_classes is 5, digits has 11 classes"),
        (("--weights", tmp_path / "none.pt"), 1, "none.pt"),
    ):
        assert_stopped(run(*TRAIN, "--out", tmp_path / "out", *options), code, message)


def test_debug_shows_where() -> None:
    result = run("evaluate", "none.pt", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("segops: cannot read the checkpoint")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: 9"),
        RuntimeError("segops: out of memory for a tensor [4, 64, 1500, 1500] of the CPU"),
        MemoryError(),
    ],
)
def test_out_of_memory(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop.Trainer, "_train_step", fail)
    assert_stopped(
        run(*TRAIN, "--out", tmp_path), 1, "out of memory: a smaller batch, smaller images, tiles or 16 bits"
    )


def test_evaluate(trained: tuple[Path, Any], tmp_path: Path) -> None:
    result = run("evaluate", trained[0] / "last.pt", "--json", tmp_path / "a.json", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "a.json").read_text())
    line = (trained[0] / "val.csv").read_text().splitlines()
    csv = dict(zip(line[0].split(","), line[-1].split(","), strict=True))
    assert scores["miou"] == float(csv["miou"])
    assert f"miou {scores['miou']:.4f}" in result.output
    assert np.sum(scores["confusion"]) == 6 * 32 * 40


def test_json_holds_json_where_a_class_does_not_occur(
    trained: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Empty(FewDigits):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = super().__getitem__(index)
            return image, torch.zeros_like(mask)

    monkeypatch.setattr(datasets, "open_split", lambda name, root, split: Empty(split, 1, (32, 40)))
    assert run("evaluate", trained[0] / "last.pt", "--json", tmp_path / "new" / "a.json").exit_code == 0

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    scores = json.loads((tmp_path / "new" / "a.json").read_text(), parse_constant=no_constant)
    assert None in scores["recall"]


def test_a_file_that_cannot_be_written_is_told_before_the_work(trained: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run("evaluate", trained[0] / "last.pt", "--json", tmp_path / "file" / "a.json")
    assert_stopped(result, 1, "cannot write", str(tmp_path / "file"))
    assert "miou" not in result.stdout


def test_evaluate_on_data_of_other_classes(trained: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "open_split", lambda *_: toy.Squares(2))
    result = run("evaluate", trained[0] / "last.pt", "--data", "squares")
    assert_stopped(result, 1, "tells 11 classes apart, squares has 3")


def test_the_folder_of_the_training_is_not_that_of_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of digits, which have none: they are measured, not refused."""
    opened: list[Any] = []

    def opening(name: str, root: Path | None, split: str) -> FewDigits:
        opened.append((name, root))
        return FewDigits(split, 2, (32, 40))

    monkeypatch.setattr(datasets, "open_split", opening)
    assert run(*TRAIN, "--data", "voc", "--root", tmp_path, "--out", tmp_path / "a", "--pictures", 0).exit_code == 0
    for options in ((), ("--data", "digits"), ("--data", "camvid", "--root", tmp_path / "b")):
        assert run("evaluate", tmp_path / "a" / "last.pt", *options).exit_code == 0
    assert opened[-3:] == [("voc", tmp_path), ("digits", None), ("camvid", tmp_path / "b")]


def test_weights_of_another_network(trained: tuple[Path, Any], tmp_path: Path) -> None:
    held = checkpoint.load(trained[0] / "last.pt")
    held.weights.pop("first.weight")
    checkpoint.save(tmp_path / "a.pt", held)
    assert_stopped(run("evaluate", tmp_path / "a.pt"), 1, "a.pt do not fit the network", "first.weight")


def test_weights_to_start_from(trained: tuple[Path, Any], tmp_path: Path) -> None:
    """Of segops or published, of this network and these classes, or an error that says what does not fit."""
    held = checkpoint.load(trained[0] / "last.pt")
    held.weights.pop("first.weight")
    checkpoint.save(tmp_path / "a.pt", held)
    command = (*TRAIN, "--out", tmp_path / "run", "--weights")
    assert_stopped(run(*command, tmp_path / "a.pt"), 1, "a.pt do not fit the network", "first.weight")
    torch.save(UNet(4, width=2).state_dict(), tmp_path / "unet.pt")
    unet = ("--model", "unet", "--model-options", "width=2")
    assert_stopped(run(*command, tmp_path / "unet.pt", *unet), 1, "outc.conv.weight", "has the shape [4,")
    torch.save(UNet(11, width=2).state_dict(), tmp_path / "unet.pt")
    assert run(*command, tmp_path / "unet.pt", *unet).exit_code == 0


def test_predict(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (33, 47)), ("deep/b.jpg", (20, 64))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:90])
    out = tmp_path / "out"
    result = run("predict", folder, "--checkpoint", trained[0] / "last.pt", "--out", out)
    assert result.exit_code == 1
    assert "2 images labelled" in result.output
    first, last = result.stderr.splitlines()
    assert first.startswith(f"segops: {folder / 'bad.png'}: ")
    assert "1 of 3 images could not be labelled" in last
    assert {str(p.relative_to(out)) for p in out.rglob("*.png")} == {
        "a.png", "a_overlay.png", "deep/b.png", "deep/b_overlay.png",
    }  # fmt: skip
    with Image.open(out / "a.png") as labels, Image.open(folder / "a.png") as image:
        assert labels.mode == "P"
        assert labels.size == (47, 33)
        assert labels.getpalette()[:33] == segops.data.DigitScenes.palette.flatten().tolist()
        network = checkpoint.load(trained[0] / "last.pt").network(trained[0])
        x = torch.from_numpy(np.array(image)).movedim(-1, 0)[None] / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            expected = network((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1)[0]
        assert (torch.from_numpy(np.array(labels)) == expected).float().mean() > 0.999


def test_predict_in_tiles(trained: tuple[Path, Any], tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (70, 50, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    command = ("predict", tmp_path / "a.png", "-c", trained[0] / "last.pt", "--no-overlay", "--out", tmp_path / "out")
    assert run(*command, "--tile", 32, "--overlap", 0.5).exit_code == 0
    network = checkpoint.load(trained[0] / "last.pt").network(trained[0])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(image).movedim(-1, 0)[None] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with Image.open(tmp_path / "out" / "a.png") as labels:
        assert np.array_equal(np.array(labels), segops.predict(network, x, tile=32, overlap=0.5)[0].numpy())
    assert run(*command, "--tile", 0).exit_code == 2


def test_predict_patterns(trained: tuple[Path, Any], tmp_path: Path) -> None:
    for name in ("x1.png", "x2.png", "y.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("L", (24, 24)).save(tmp_path / "in" / name)
    command = ("predict", "-c", trained[0] / "last.pt", "--no-overlay", "--out", tmp_path / "out")
    assert run(*command, tmp_path / "in" / "x*.png", tmp_path / "in" / "y.png").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x1.png", "x2.png", "y.png"]
    assert_stopped(run(*command, tmp_path / "in" / "z*"), 1, "there is no image", "z*")
    (tmp_path / "in2").mkdir()
    Image.new("L", (24, 24)).save(tmp_path / "in2" / "y.jpg")
    assert_stopped(run(*command, tmp_path / "in", tmp_path / "in2"), 1, "y.png and", "y.jpg would have one name")


@pytest.mark.parametrize("name", ["y.png", "y_overlay.png"])
def test_predict_never_writes_over_an_image(name: str, trained: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (24, 24), (9, 9, 9)).save(tmp_path / "in" / "y.png")
    (tmp_path / "in" / "y.png").replace(tmp_path / "in" / name)
    if name != "y.png":
        Image.new("RGB", (24, 24)).save(tmp_path / "in" / "y.jpg")
    before = (tmp_path / "in" / name).read_bytes()
    for images in (tmp_path / "in", tmp_path / "in" / "*"):
        result = run("predict", images, "-c", trained[0] / "last.pt", "--out", tmp_path / "in" / ".." / "in")
        assert_stopped(result, 1, "a result would be written over the image", name, "choose another folder")
    assert (tmp_path / "in" / name).read_bytes() == before
    assert len(list((tmp_path / "in").iterdir())) == (1 if name == "y.png" else 2)


def test_images_of_two_sizes_make_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoSizes(FewDigits):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = super().__getitem__(index)
            return (image, mask) if index % 2 else (image[..., 8:], mask[..., 8:])

    monkeypatch.setattr(datasets, "open_split", lambda name, root, split: TwoSizes(split, 6, (32, 40)))
    for workers in (0, 1):
        result = run(*TRAIN, "--out", tmp_path / str(workers), "--batch-size", 6, "--workers", workers)
        assert_stopped(result, 1, "different sizes, 32 x 32 and 32 x 40, make no batch: set crop or resize")
    assert run(*TRAIN, "--out", tmp_path / "cropped", "--crop", "32,32", "--pictures", 0).exit_code == 0


def test_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary masks: one class, a sigmoid, measures of saliency; a corrupt image is named, whoever reads it."""
    monkeypatch.setattr(datasets, "open_split", open_split)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(3):
        mask = np.zeros((24, 32), np.uint8)
        mask[4 : 10 + i, 5:20] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
        Image.fromarray(np.stack([mask // 2] * 3, -1)).save(tmp_path / "images" / f"{i}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("0\n1\n2\n")
    arguments = (*TRAIN, "--data", "folder", "--root", tmp_path, "--pictures", 1)
    result = run(*arguments, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "1 classes" in result.output
    assert {"mae", "iou_background", "iou_object"} < set((tmp_path / "a/val.csv").read_text().split("\n")[0].split(","))
    assert run("evaluate", tmp_path / "a" / "last.pt").exit_code == 0
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    for workers in (0, 1):
        result = run(*arguments, "--out", tmp_path / f"b{workers}", "--workers", workers)
        assert_stopped(result, 1, str(tmp_path / "images" / "1.png"))
    assert_stopped(run(*arguments, "--train-split", "none", "--out", tmp_path / "c"), 1, "none.txt")
    assert_stopped(run(*TRAIN, "--data", "no", "--out", tmp_path / "c"), 2, "name must be one of camvid", "'no'")


def test_models_tells_what_networks_cost() -> None:
    result = run("models", "toy", "--size", 32)
    assert result.exit_code == 0, result.output
    count = sum(p.numel() for p in toy.Toy(classes=19).parameters())
    assert re.search(rf"toy .* {count:,} ", result.output)
    layers = CliRunner().invoke(app, ["models", "u2netp", "csnet_l_x1", "--layers"], env={"COLUMNS": "200"}).output
    assert re.search(r"encoder.0.input .*ConvNormAct .* 1,920 .* 1 .* 3 ", layers)
    assert re.search(r"csnet_l_x1 .* 93,647 ", layers)
    assert_stopped(run("models", "unett"), 2, "there is no network 'unett'")
    assert_stopped(run("models", "basnet", "--size", 100), 2, "multiples of 32", "100")


def test_bench_times_one_operator() -> None:
    result = run("bench", "upsample_argmax", "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "upsample_argmax" in result.output
    assert "dice_ce_loss" not in result.output


def test_help_names_every_setting() -> None:
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for name in loop.TrainConfig().plain():
        assert f"--{name.replace('_', '-')}" in result.output


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pre", ["predict"]),
        ("train --model segnet", ["segnet", "segnet_basic"]),
        ("train --data c", ["camvid", "cityscapes"]),
    ],
)
def test_the_shell_completes(typed: str, expected: list[str]) -> None:
    words = f"segops {typed}"
    asked = {"_SEGOPS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(typed.split()))}
    assert CliRunner().invoke(app, [], env=asked, prog_name="segops").output.split() == expected
    assert "_SEGOPS_COMPLETE" in CliRunner().invoke(app, ["--show-completion", "bash"], prog_name="segops").output
