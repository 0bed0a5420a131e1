from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segops import models
from tests.models import checks
from tests.models.plain.drn import DRN


@pytest.mark.parametrize(
    ("name", "count"), [("drn_d_22", 15_895_363), ("drn_c_26", 20_628_195), ("drn_d_54", 35_310_787)]
)
def test_parameters_are_the_published_network_s(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 19)) == count


def test_any_size() -> None:
    checks.check_sizes(checks.build("drn_d_22", 3), 3, [(1, 1), (17, 26)])


def test_one_graph() -> None:
    checks.check_graphs(checks.build("drn_d_22", 2), 15, 18)


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"),
    [
        ("drn_c_26", [2, 2, 2, 2], False),
        ("drn_c_58", [3, 4, 6, 3], True),
        ("drn_d_22", [2, 2, 2, 2], False),
        ("drn_d_38", [3, 4, 6, 3], False),
        ("drn_d_54", [3, 4, 6, 3], True),
    ],
)
def test_outputs_and_keys(name: str, blocks: list[int], bottleneck: bool) -> None:
    plain = DRN(name[4], blocks, bottleneck, 4)
    model = checks.check_parity(name, plain, checks.image(19, 33), None, num_classes=4)
    log_probabilities, logits = model(checks.image(19, 33).double(), raw_output=True)
    assert log_probabilities.shape == (1, 4, 24, 40)
    assert logits.shape == (1, 4, 3, 5)


@pytest.mark.parametrize(("name", "blocks"), [("drn_c_42", [3, 4, 6, 3]), ("drn_d_105", [3, 4, 23, 3])])
def test_keys_of_the_others(name: str, blocks: list[int]) -> None:
    with torch.device("meta"):
        state = DRN(name[4], blocks, name == "drn_d_105", 5).state_dict()
    found = models.convert_official_state_dict(name, {f"module.{key}": value for key, value in state.items()})
    assert found["seg.weight"].shape == (5, 512, 1, 1)


def test_upsampling_is_frozen_and_bilinear() -> None:
    up = models.create_model("drn_d_22", 2).up
    assert not up.weight.requires_grad
    torch.testing.assert_close(up(torch.ones(1, 2, 5, 5))[..., 8:-8, 8:-8], torch.ones(1, 2, 24, 24))


def test_checkpoint_file(tmp_path: Path) -> None:
    plain = DRN("d", [2, 2, 2, 2], False, 3)
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "drn.pth")
    model = models.load_official("drn_d_22", tmp_path / "drn.pth").eval()
    x = checks.image(9, 16)
    torch.testing.assert_close(model(x, raw_output=True)[1], plain.eval()(x)[1], atol=1e-4, rtol=1e-3)
    state = dict(plain.state_dict())
    with pytest.raises(ValueError, match=r"base\.9\.weight"):
        models.convert_official_state_dict("drn_d_22", {**state, "base.9.weight": torch.zeros(1)})
    del state["seg.bias"]
    with pytest.raises(ValueError, match=r"missing key 'seg\.bias'"):
        models.convert_official_state_dict("drn_d_22", state)
