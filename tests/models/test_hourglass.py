from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segops import models
from tests.models import checks
from tests.models.plain.hourglass import PoseNet


def test_parameters_are_the_published_network_s() -> None:
    assert checks.parameters(checks.on_meta("hourglass8", 16)) == 25_434_112
    with torch.device("meta"):
        assert checks.parameters(PoseNet(8, 16)) == 32_819_328


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
