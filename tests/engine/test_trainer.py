"""The training loop: it learns, continues exactly, stops when asked to, and writes down what it did."""

from __future__ import annotations

import csv
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segops
from segops.engine import checkpoint, interrupt, trainer
from segops.engine.losses import TrainingLoss
from segops.engine.output import RunError
from segops.engine.ranks import Ranks
from segops.nn.norm_act import trains_lean
from tests.engine import toy


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_time(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines(path)]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, whatever is nested."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def test_it_learns(tmp_path: Path) -> None:
    scores = toy.trainer(toy.config(tmp_path, steps=40, pictures=2, val_every=20)).run()
    assert scores["miou"] > 0.9
    losses = [float(line["loss"]) for line in lines(tmp_path / "train.csv")]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    measured = lines(tmp_path / "val.csv")
    assert [line["step"] for line in measured] == ["20", "40"]
    assert float(measured[-1]["miou"]) == scores["miou"]
    assert {"iou_dark", "iou_red", "iou_green"} < measured[0].keys()
    assert sorted(os.listdir(tmp_path / "pictures")) == ["0000020.png", "0000040.png"]
    best = max(float(line["miou"]) for line in measured)
    assert checkpoint.load(tmp_path / "best.pt").training["best"] == best


OPTIONS = {
    "plain": {},
    "all": {
        "ema": 0.9,
        "optimizer": "sgd",
        "precision": "bf16",
        "clip": 0.5,
        "warmup": 2,
        "workers": 1,
        "crop": (8, 8),
    },
    # Its first steps overflow: the scale that they leave is part of the state.
    "scaled": {"precision": "fp16", "ema": 0.9, "schedule": "cosine", "pixel_term": 300.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_continuation_is_the_same_run(name: str, tmp_path: Path) -> None:
    """Stopped at every kind of step: in the middle of an epoch, at its end, in the second one."""
    whole = toy.trainer(toy.config(tmp_path / "whole", **OPTIONS[name]))
    whole.run()
    expected = checkpoint.load(tmp_path / "whole" / "last.pt")
    assert (name == "scaled") == (0 < expected.training["scaler"].get("scale", 0) < 2**16)
    for stop in (1, 5) if name == "all" else (1, 3, 5):
        out = tmp_path / str(stop)
        stopped = toy.trainer(toy.config(out, **OPTIONS[name]))
        ask_after(stopped, stop)
        with pytest.raises(RunError):
            stopped.run()
        torch.manual_seed(99)  # what is random in a new process is something else
        torch.rand(stop)
        again = toy.trainer(toy.config(out, **OPTIONS[name]))
        again.resume(out / "last.pt")
        assert again.step == stop
        again.run()
        found = checkpoint.load(out / "last.pt")
        assert_same(found.weights, expected.weights)
        assert_same(found.training, expected.training)
        assert without_time(out / "train.csv") == without_time(tmp_path / "whole" / "train.csv")
        assert without_time(out / "val.csv") == without_time(tmp_path / "whole" / "val.csv")


def ask_after(a_trainer: trainer.Trainer, step: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal in the middle of a step."""
    train_step = a_trainer._train_step

    def step_with_signal(*arguments: Any) -> torch.Tensor:
        if a_trainer.step == step - 1:
            os.kill(os.getpid(), number)
        return train_step(*arguments)

    a_trainer._train_step = step_with_signal  # type: ignore[method-assign]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step(number: int, exit_code: int, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    stopped = toy.trainer(toy.config(tmp_path))
    ask_after(stopped, 2, number)
    with pytest.raises(
        RunError, match=r"interrupted after step 2 of 7; continue with: segops train --resume"
    ) as caught:
        stopped.run()
    assert caught.value.exit_code == exit_code
    assert checkpoint.load(tmp_path / "last.pt").training["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_resume_that_does_not_fit(tmp_path: Path) -> None:
    toy.trainer(toy.config(tmp_path, steps=2)).run()
    last = tmp_path / "last.pt"
    with pytest.raises(RunError, match=r"10 images in batches of 4 with seed 0, this run is on 10 .* batches of 5"):
        toy.trainer(toy.config(tmp_path, batch_size=5)).resume(last)
    with pytest.raises(RunError, match="was trained without ema"):
        toy.trainer(toy.config(tmp_path, ema=0.9)).resume(last)
    with pytest.raises(RunError, match=r"last.pt do not fit the network: .*heads.0.weight"):
        toy.trainer(toy.config(tmp_path), toy.Toy(classes=4)).resume(last)
    with pytest.raises(RunError, match="has done 2 steps, more than the 1 of this run"):
        toy.trainer(toy.config(tmp_path, steps=1)).resume(last)
    with pytest.raises(RunError, match="was trained with another optimizer"):
        toy.trainer(toy.config(tmp_path, optimizer="sgd", momentum=0.5), OneGroup()).resume(last)


class OneGroup(toy.Toy):
    """The same state, of which biases and scales are not trained."""

    def __init__(self) -> None:
        super().__init__()
        for p in self.parameters():
            p.requires_grad_(p.ndim > 1)


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    model = toy.Toy()
    with torch.no_grad():
        model.heads[0].bias.fill_(math.nan)
    with pytest.raises(RunError, match="the loss is nan at step 1"):
        toy.trainer(toy.config(tmp_path), model).run()


def test_a_scaled_loss_that_stays_no_number_stops(tmp_path: Path) -> None:
    model = toy.Toy()
    with torch.no_grad():
        model.heads[0].bias.fill_(math.nan)
    with pytest.raises(RunError, match=r"the loss is nan at step 1[5-9]"):
        toy.trainer(toy.config(tmp_path, precision="fp16", steps=30, val_every=100), model).run()


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    """Where the loss is not looked at before the checkpoint."""
    run = toy.trainer(toy.config(tmp_path, steps=4, save_every=1, log_every=100, val_every=100))
    train_step = run._train_step

    def breaking(*arguments: Any) -> torch.Tensor:
        loss = train_step(*arguments)
        if run.step == 2:
            with torch.no_grad():
                run.model.norm.weight[0] = math.inf
        return loss

    run._train_step = breaking  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"1 weights hold no numbers after step 3, the first is norm.weight; last.pt is"):
        run.run()
    assert checkpoint.load(tmp_path / "last.pt").training["step"] == 2


def test_a_kill_between_two_checkpoints_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best network is that of the last step; the process ends between the two files that are then due."""
    settings = toy.config(tmp_path / "a", val_every=7, save_every=5)
    save, written = checkpoint.save, []

    def save_two(path: Path, content: checkpoint.Checkpoint) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        save(path, content)

    run = toy.trainer(settings)
    monkeypatch.setattr(checkpoint, "save", save_two)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    monkeypatch.undo()
    again = toy.trainer(settings)
    again.resume(tmp_path / "a" / "last.pt")
    again.run()
    toy.trainer(toy.config(tmp_path / "b", val_every=7, save_every=5)).run()
    for name in ("last.pt", "best.pt"):
        found, expected = (checkpoint.load(tmp_path / run / name).training for run in ("a", "b"))
        assert_same(found, expected)


def test_a_signal_that_comes_twice_at_once_is_one_wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = toy.trainer(toy.config(tmp_path))
    ask_after(stopped, 2)
    ask_after(stopped, 2, signal.SIGTERM)
    with pytest.raises(RunError, match="interrupted after step 2 of 7"):
        stopped.run()
    monkeypatch.setattr(interrupt, "_SAME", -1.0)
    ask_after(impatient := toy.trainer(toy.config(tmp_path)), 2)
    ask_after(impatient, 2)
    with pytest.raises(KeyboardInterrupt):
        impatient.run()


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    for values, message in (
        ({"loss": "dice_bce"}, "loss 'dice_bce' is for one class, the network has 3"),
        ({"loss": "u2net"}, "loss 'u2net' is for one class, the network has 3"),
        ({"sync_norm": True}, "sync_norm needs CUDA devices, as torch.nn.SyncBatchNorm does; this is cpu"),
    ):
        with pytest.raises(RunError, match=message) as caught:
            toy.trainer(toy.config(tmp_path, **values))
        assert caught.value.exit_code == 2
    with pytest.raises(RunError, match="side_weights must be 2 numbers for this network, got 3"):
        toy.trainer(toy.config(tmp_path, side_weights=(1.0, 1.0, 1.0))).run()
    with pytest.raises(RunError, match="scale needs crop"):
        toy.trainer(toy.config(tmp_path, scale=(0.5, 1.0))).run()


def test_losses_of_single_networks(tmp_path: Path) -> None:
    masks = torch.randint(0, 2, (2, 12, 16))
    for name, heads, expected in (
        ("u2net", 7, segops.nn.U2NetLoss()),
        ("basnet", 8, segops.nn.BASNetLoss()),
    ):
        logits = list(torch.randn(heads, 2, 1, 6, 8))
        loss = TrainingLoss(toy.config(tmp_path, loss=name), 1, None)
        torch.testing.assert_close(loss(logits, masks), expected(logits, masks[:, None].float()))

    masks[0, 0] = 255
    logits, weight = list(torch.randn(2, 2, 3, 6, 8)), torch.tensor([1.0, 2.0, 3.0])
    hard = {"threshold": 0.2, "min_kept": 5}
    settings = toy.config(tmp_path, loss="ohem", **{f"ohem_{name}": value for name, value in hard.items()})
    found = TrainingLoss(settings, 3, 255, class_weights=weight)(logits, masks)
    expected = segops.nn.OhemCrossEntropy(**hard, weight=weight, head_weights=(1.0, 1.0))
    torch.testing.assert_close(found, expected(logits, masks))
    assert found != TrainingLoss(toy.config(tmp_path, loss="ohem"), 3, 255, class_weights=weight)(logits, masks)

    assert toy.trainer(toy.config(tmp_path, loss="ohem", steps=40)).run()["miou"] > 0.8


def test_every_norm_becomes_one_of_all_ranks() -> None:
    """As far as a CPU tells: nothing is left of the process's own norms, keys and predictions stay."""
    model = segops.models.create_model("unet", num_classes=3, width=4).eval()
    images = torch.randn(1, 3, 32, 32)
    keys, expected = list(model.state_dict()), model(images)
    converted = trainer._with_sync_norm(model, Ranks(0, 2, torch.device("cuda")))
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
    assert list(converted.state_dict()) == keys
    torch.testing.assert_close(converted(images), expected)
    # In training, too, it is the norm that runs: ConvNormAct has a way of its own for those of one process alone.
    assert not any(trains_lean(norm.train(), torch.ones(1, requires_grad=True)) for norm in norms)


def test_a_side_output_of_weight_zero_is_left_out(tmp_path: Path) -> None:
    model = toy.Toy(dropout=0)
    before = model.heads[1].weight.detach().clone()
    toy.trainer(toy.config(tmp_path, steps=2, side_weights=(1.0, 0.0), weight_decay=0.0), model).run()
    assert torch.equal(model.heads[1].weight, before)
    toy.trainer(toy.config(tmp_path, steps=2, weight_decay=0.0), model).run()
    assert not torch.equal(model.heads[1].weight, before)


def test_frozen_norm(tmp_path: Path) -> None:
    model = toy.Toy()
    toy.trainer(toy.config(tmp_path, steps=2, freeze_norm=True), model).run()
    assert model.norm.running_mean.abs().max() == 0
    toy.trainer(toy.config(tmp_path, steps=2), model).run()
    assert model.norm.running_mean.abs().max() > 0


def test_any_network_may_be_trained(tmp_path: Path) -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.convolution(x), "aux": self.convolution(x[..., ::2, ::2])}

    scores = toy.trainer(toy.config(tmp_path, steps=60, lr=0.1), Mapped()).run()
    assert scores["miou"] > 0.8


def test_one_class_is_a_sigmoid_with_measures_of_saliency(tmp_path: Path) -> None:
    class Binary(toy.Squares):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = super().__getitem__(index)
            return image, torch.where(mask == 255, mask, (mask == 1).long())

    settings = toy.config(tmp_path, steps=40)
    classes = checkpoint.Classes("binary", ["other", "red"], [[0, 0, 0], [255, 0, 0]], 255)
    torch.manual_seed(0)
    run = trainer.Trainer(settings, toy.Toy(classes=1), 1, Binary(10), Binary(5), classes)
    scores = run.run()
    assert scores["miou"] > 0.9
    assert scores["mae"] < 0.2
    assert scores["max_f"] > 0.9
