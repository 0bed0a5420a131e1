from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from segops import models
from tests.models import checks

segmentation: Any = torchvision.models.segmentation
NAMES = ["fcn_resnet50", "deeplabv3_resnet50"]


def theirs(name: str, classes: int, aux: bool = True) -> torch.nn.Module:
    model: torch.nn.Module = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux
    )
    return model


@pytest.mark.parametrize(("name", "count"), zip(NAMES, [35_322_218, 42_004_074], strict=True))
def test_parameters_are_torchvision_s(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 21)) == count


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_keys_are_torchvision_s(name: str) -> None:
    model = checks.check_parity(name, theirs(name, 3), checks.image(33, 41), None, num_classes=3)
    output = model(checks.image(9, 17).double(), raw_output=True)
    assert {key: tuple(x.shape) for key, x in output.items()} == {"out": (1, 3, 9, 17), "aux": (1, 3, 9, 17)}


def test_any_size() -> None:
    model = checks.build("deeplabv3_resnet50", 2)
    checks.check_sizes(model, 2, [(1, 1), (17, 26)])
    assert len(model(checks.image(9, 9), side_outputs=True)) == 2


def test_one_graph() -> None:
    checks.check_graphs(checks.build("fcn_resnet50", 2), 15, 18)


def test_checkpoint_file_without_auxiliary_head(tmp_path: Path) -> None:
    torch.save(theirs("fcn_resnet50", 3, aux=False).state_dict(), tmp_path / "fcn.pth")
    model = models.load_official("fcn_resnet50", tmp_path / "fcn.pth")
    assert isinstance(model(checks.image(9, 9, batch=2)), torch.Tensor)
    assert list(model.eval()(checks.image(9, 9), raw_output=True)) == ["out"]


def test_wrong_keys_are_named() -> None:
    with torch.device("meta"):
        state = dict(theirs("fcn_resnet50", 3).state_dict())
    with pytest.raises(ValueError, match=r"classifier\.7\.weight"):
        models.convert_official_state_dict("fcn_resnet50", {**state, "classifier.7.weight": torch.zeros(1)})
    del state["classifier.4.bias"]
    with pytest.raises(ValueError, match=r"missing key 'classifier\.4\.bias'"):
        models.convert_official_state_dict("fcn_resnet50", state)
