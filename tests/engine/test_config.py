"""Settings: defaults, YAML and their errors; the schedule of the learning rate; the running mean."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from segops.engine.config import ConfigError, TrainConfig, abouts, read_yaml
from segops.engine.ema import ExponentialMovingAverage
from segops.engine.output import RunError
from segops.engine.schedules import factor


def test_values_come_back_from_plain_ones(tmp_path: Path) -> None:
    given = TrainConfig(out=tmp_path, crop=(32, 48), side_weights=(1.0, 0.5), model_options={"bilinear": True})
    plain = given.plain()
    assert plain["crop"] == [32, 48]
    assert plain["out"] == str(tmp_path)
    assert TrainConfig.of(plain) == given


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-3\nout: there\nscale: [0.5, 2]\nschedule: cosine\nsteps: null\n")
    config = TrainConfig.of(read_yaml(path), str(path))
    assert (config.lr, config.out, config.scale, config.schedule) == (1e-3, Path("there"), (0.5, 2.0), "cosine")
    path.write_text("")
    assert TrainConfig.of(read_yaml(path)) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1", "a.yaml: unknown setting 'learning_rate'; there are model, "),
        ("lr: fast", "a.yaml: lr must be a number, got 'fast'"),
        ("lr: -1", "a.yaml: lr must be above 0, got -1.0"),
        ("lr: .nan", "a.yaml: lr must be finite, got nan"),
        ("batch_size: 2.5", "a.yaml: batch_size must be a whole number, got 2.5"),
        ("batch_size: true", "a.yaml: batch_size must be a whole number, got True"),
        ("batch_size: 0", "a.yaml: batch_size must be at least 1, got 0"),
        ("flip: 1", "a.yaml: flip must be true or false, got 1"),
        ("crop: 32", "a.yaml: crop must be a list of 2 whole numbers or null, got 32"),
        ("crop: [32]", "a.yaml: crop must be a list of 2 whole numbers or null, got [32]"),
        ("crop: [32, 0]", "a.yaml: crop must be at least 1, got 0"),
        ("side_weights: [a]", "a.yaml: side_weights must be a list of numbers or null, got ['a']"),
        ("schedule: step", "a.yaml: schedule must be 'poly' or 'cosine' or 'constant', got 'step'"),
        ("model_options: [1]", "a.yaml: model_options must be a mapping of names to values, got [1]"),
        ("ema: 1.0", "a.yaml: ema must be below 1, got 1.0"),
        ("{pixel_term: 0, dice_term: 0}", "pixel_term and dice_term must not both be 0"),
        ("scale: [2, 1]", "scale must be a smaller and a larger number"),
        ("label_smoothing: 2", "label_smoothing must be at most 1, got 2.0"),
        ("{loss: basnet, dice_term: 2}", "loss 'basnet' has no dice_term, got 2.0"),
        ("ohem_threshold: 1.5", "ohem_threshold must be at most 1, got 1.5"),
        ("- lr", "a.yaml must be a mapping of settings to values, got list"),
        ("lr: [", "a.yaml is not YAML"),
    ],
)
def test_a_wrong_setting_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.of(read_yaml(path), str(path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read .*none.yaml: No such file") as caught:
        read_yaml(tmp_path / "none.yaml")
    assert caught.value.exit_code == 1


def test_every_setting_says_what_it_means() -> None:
    assert list(abouts()) == list(TrainConfig().plain())
    assert {about.section for about in abouts().values()} == {"Network", "Data", "Loss", "Optimisation", "Run"}
    assert all(about.help.endswith(".") for about in abouts().values())


def test_schedules_by_hand() -> None:
    assert [factor("constant", step, 9, warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor("poly", 0, 10, power=2) == 1
    assert math.isclose(factor("poly", 5, 10, power=2), 0.25)
    assert math.isclose(factor("poly", 6, 12, warmup=2, power=0.9), 0.6**0.9)
    assert factor("cosine", 0, 10) == 1
    assert math.isclose(factor("cosine", 5, 10), 0.5)
    assert factor("cosine", 10, 10) == 0


def test_the_running_mean_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    mean = ExponentialMovingAverage(model, decay=0.15)
    expected = 1.0
    for step, decay in enumerate((0.1, 0.15, 0.15)):  # (1 + t) / (10 + t): 0.1, 0.1818, ...
        with torch.no_grad():
            model.weight.fill_(step + 2.0)
            model.running_mean.fill_(step)
        mean.update(model, step)
        expected = decay * expected + (1 - decay) * (step + 2.0)
        assert math.isclose(mean.model.weight.item(), expected, rel_tol=1e-6)
        assert mean.model.running_mean.item() == step
    assert not mean.model.training
    assert not mean.model.weight.requires_grad
