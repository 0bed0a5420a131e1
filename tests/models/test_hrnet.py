from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segops import models
from segops.models.hrnet import HRNet
from tests.models import checks
from tests.models.plain import hrnet as plain

SMALL: dict[str, dict[str, Any]] = {
    "hrnet_w18_small_v1": {"c": 16, "layer1": (1, 32), "blocks": 2, "modules": (1, 1, 1)},
    "hrnet_w18_small_v2": {"c": 18, "layer1": (2, 64), "blocks": 2, "modules": (1, 3, 2)},
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("hrnet_w18_small_v1", 1_540_819),
        ("hrnet_w18_small_v2", 3_939_579),
        ("hrnet_w48", 65_859_379),
        ("hrnet_w48_ocr", 70_372_678),
    ],
)
def test_parameters_are_the_published_network_s(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 19)) == count


def test_keys_are_as_many_as_the_released_file_s() -> None:
    with torch.device("meta"):
        state = plain.HRNet(48, 19).state_dict()
    assert len(state) == 1839


def small_ocr(num_classes: int, **options: Any) -> HRNet:
    return HRNet(num_classes, width=4, first=(1, 8), blocks=1, modules=(1, 1, 1), ocr=True, **options)


def test_any_size() -> None:
    checks.check_sizes(checks.build("hrnet_w18_small_v1", 3), 3, [(1, 1), (37, 50)])
    ocr = small_ocr(3).eval()
    checks.shake(ocr)
    checks.check_sizes(ocr, 3, [(5, 66)])


def test_one_graph() -> None:
    model = HRNet(2, width=4, first=(1, 8), blocks=1, modules=(1, 1, 1)).eval()
    checks.shake(model)
    checks.check_graphs(model, 37, 50)
    ocr = small_ocr(2).eval()
    checks.shake(ocr)
    x = checks.image(33, 40)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(ocr, (x,)).module()(x), ocr(x))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("align", [False, True])
def test_outputs_and_keys(name: str, align: bool) -> None:
    official = plain.HRNet(classes=4, align=align, **SMALL[name])
    checks.check_parity(name, official, checks.image(75, 98), None, num_classes=4, align_corners=align)


def test_outputs_and_keys_of_ocr() -> None:
    official = plain.HRNet(48, 3, ocr=True, align=True)
    model = checks.check_parity("hrnet_w48_ocr", official, checks.image(34, 41), None, num_classes=3)
    x = checks.image(34, 41).double()
    with torch.no_grad():
        auxiliary, logits = model(x, raw_output=True)
        both = model(x, side_outputs=True)
        alone = model(x)
    assert model.align_corners
    assert torch.equal(alone, model.to_size(logits, 34, 41))
    assert torch.equal(both[1], model.to_size(auxiliary, 34, 41))


@pytest.mark.parametrize(("name", "width"), [("hrnet_w18", 18), ("hrnet_w32", 32), ("hrnet_w48", 48)])
def test_keys_of_the_others(name: str, width: int) -> None:
    with torch.device("meta"):
        state = plain.HRNet(width, 5).state_dict()
    wrapped = {**{f"model.{key}": value for key, value in state.items()}, "loss.criterion.weight": torch.ones(5)}
    found = models.convert_official_state_dict(name, wrapped)
    assert found["last_layer.1.weight"].shape == (5, 15 * width, 1, 1)


def test_checkpoint_file(tmp_path: Path) -> None:
    official = plain.HRNet(classes=3, **SMALL["hrnet_w18_small_v1"])
    state = {f"model.{key}": value for key, value in official.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "hrnet.pth")
    model = models.load_official("hrnet_w18_small_v1", tmp_path / "hrnet.pth").eval()
    x = checks.image(64, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(x, raw_output=True), official.eval()(x), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"no use for the key 'stage5\.0\.weight'"):
        models.convert_official_state_dict("hrnet_w18_small_v1", {**state, "model.stage5.0.weight": torch.ones(1)})
    del state["model.last_layer.3.bias"]
    with pytest.raises(ValueError, match=r"missing key 'last_layer\.3\.bias'"):
        models.convert_official_state_dict("hrnet_w18_small_v1", state)
