from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segops import models
from tests.models import checks
from tests.models.plain.hourglass import PoseNet
from tests.models.plain.pytorch_pose import HourglassNet


def test_parameters_are_the_published_network_s() -> None:
    assert checks.parameters(checks.on_meta("hourglass8", 16)) == 25_434_112
    with torch.device("meta"):
        assert checks.parameters(PoseNet(8, 16)) == 32_819_328


@pytest.mark.parametrize(("name", "stacks", "count"), [("hourglass2", 2, 6_730_912), ("hourglass8", 8, 25_594_624)])
def test_parameters_with_the_stem_of_pytorch_pose(name: str, stacks: int, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 16, stem="pytorch_pose")) == count
    with torch.device("meta"):
        assert checks.parameters(HourglassNet(stacks, 16)) == count


def test_an_unknown_stem() -> None:
    with pytest.raises(ValueError, match="stem must be one of newell, pytorch_pose, got 'resnet'"):
        checks.on_meta("hourglass2", 16, stem="resnet")


def test_any_multiple_of_64() -> None:
    model = checks.build("hourglass2", 2)
    checks.check_sizes(model, 2, [(64, 128)])
    with pytest.raises(ValueError, match="multiples of 64, got 64 x 100"):
        model(checks.image(64, 100))


def test_one_graph() -> None:
    checks.check_graphs(checks.build("hourglass2", 2, stacks=1), 64, 64)


@pytest.mark.parametrize(("name", "stacks"), [("hourglass2", 2), ("hourglass8", 8)])
def test_outputs_and_keys(name: str, stacks: int) -> None:
    model = checks.check_parity(name, PoseNet(stacks, 3), checks.image(64, 128), None, num_classes=3)
    x = checks.image(64, 64).double()
    with torch.no_grad():
        maps, coarse = model(x, raw_output=True), model.coarse_logits(x, side_outputs=True)
    assert maps.shape == (1, stacks, 3, 16, 16)
    assert torch.equal(coarse[0], maps[:, -1])
    assert torch.equal(coarse[-1], maps[:, 0])


def test_checkpoint_file(tmp_path: Path) -> None:
    state = {f"model.module.{key}": value for key, value in PoseNet(2, 3).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "pose.pt")
    assert models.load_official("hourglass2", tmp_path / "pose.pt").outs[0].out_channels == 3
    with pytest.raises(ValueError, match=r"outs\.0\.scale"):
        models.convert_official_state_dict("hourglass2", {**state, "model.module.outs.0.scale": torch.zeros(1)})
    del state["model.module.outs.1.conv.bias"]
    with pytest.raises(ValueError, match=r"missing key 'outs\.1\.conv\.bias'"):
        models.convert_official_state_dict("hourglass2", state)


@pytest.mark.parametrize(("name", "stacks"), [("hourglass2", 2), ("hourglass8", 8)])
def test_outputs_and_keys_of_pytorch_pose(name: str, stacks: int) -> None:
    checks.check_parity(
        name,
        HourglassNet(stacks, 3),
        checks.image(64, 128),
        lambda model, x: list(model(x, raw_output=True).unbind(1)),
        num_classes=3,
        stem="pytorch_pose",
    )


def test_checkpoint_file_of_pytorch_pose(tmp_path: Path) -> None:
    """The stem is told by the file; a key that is unknown or missing is named as the file has it."""
    plain = HourglassNet(2, 3)
    state = {f"module.{key}": value for key, value in plain.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 220, "arch": "hg"}, tmp_path / "checkpoint.pth.tar")
    model = models.load_official("hourglass2", tmp_path / "checkpoint.pth.tar")
    assert torch.equal(model.pre[3].skip.weight, plain.layer2[0].downsample[0].weight)
    assert torch.equal(model.hgs[1].low2.low2.low2.low2.conv1.conv.weight, plain.hg[1].hg[0][3][0].conv1.weight)
    with pytest.raises(ValueError, match=r"no use for the key 'hg\.0\.hg\.3\.0\.1\.conv1\.weight'"):
        models.convert_official_state_dict("hourglass2", {**state, "module.hg.0.hg.3.0.1.conv1.weight": torch.zeros(1)})
    del state["module.hg.1.hg.0.3.0.conv2.bias"]
    with pytest.raises(ValueError, match=r"missing key 'hg\.1\.hg\.0\.3\.0\.conv2\.bias'"):
        models.convert_official_state_dict("hourglass2", state)
