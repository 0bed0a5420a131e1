from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segops import models
from segops.models.bilinear import BilinearConvTranspose2d, bilinear_kernel
from tests.models import checks
from tests.models.plain import fcn as plain

WIDTH = 4
OFFICIAL: dict[str, dict[str, Any]] = {
    "fcn32s": {"stride": 32},
    "fcn16s": {"stride": 16},
    "fcn8s": {"stride": 8},
    "fcn8s_atonce": {"stride": 8, "at_once": True},
}


@pytest.mark.parametrize(
    ("name", "count"),
    [("fcn32s", 136_152_917), ("fcn16s", 134_815_994), ("fcn8s", 134_489_759), ("fcn8s_atonce", 134_489_759)],
)
def test_parameters_are_the_published_network_s(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 21)) == count


@pytest.mark.parametrize("name", OFFICIAL)
def test_any_size(name: str) -> None:
    model = checks.build(name, 3, in_channels=1, width=WIDTH)
    checks.check_sizes(model, 3, [(1, 1), (33, 58)], channels=1)


def test_one_graph() -> None:
    checks.check_graphs(checks.build("fcn8s", 3, width=WIDTH), 23, 37)


@pytest.mark.parametrize("name", OFFICIAL)
def test_outputs_and_keys(name: str) -> None:
    official = plain.FCN(4, width=WIDTH, **OFFICIAL[name])
    checks.check_parity(name, official, checks.image(45, 67), None, num_classes=4, width=WIDTH)


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (16, 8), (64, 32), (5, 3)])
def test_upsampling_begins_bilinear(size: int, stride: int) -> None:
    torch.testing.assert_close(bilinear_kernel(size), bilinear_kernel(size).flip(0).T)
    up = BilinearConvTranspose2d(2, size, stride, padding=stride // 2)
    grouped = BilinearConvTranspose2d(2, size, stride, padding=stride // 2, groups=2)
    x = checks.image(6, 7, channels=2)
    torch.testing.assert_close(up(x), grouped(x))
    if size == 2 * stride:  # the same points, but at the border, where zeros lie around the map
        inner = (..., slice(stride, -stride), slice(stride, -stride))
        expected = F.interpolate(x, scale_factor=stride, mode="bilinear")
        torch.testing.assert_close(up(x)[inner], expected[inner])
    torch.testing.assert_close(up(torch.ones_like(x))[..., stride:-stride, stride:-stride].amin(), torch.tensor(1.0))


@pytest.mark.parametrize("learnable", [False, True])
def test_upsampling_is_frozen_unless_it_is_to_be_learned(learnable: bool) -> None:
    model = checks.on_meta("fcn8s", 3, width=WIDTH, learnable_upsampling=learnable)
    ups = [m for m in model.modules() if isinstance(m, BilinearConvTranspose2d)]
    assert [up.weight.requires_grad for up in ups] == 3 * [learnable]


def test_scores_begin_at_zero_and_learn() -> None:
    model = models.create_model("fcn8s", 3, width=WIDTH, dropout=0.0)
    assert not model(checks.image(20, 20)).any()
    loss = F.cross_entropy(model(checks.image(20, 20)), torch.ones(1, 20, 20, dtype=torch.long))
    loss.backward()
    assert bool(model.score.weight.grad.any())
    assert all(bool(skip.score.weight.grad.any()) for skip in model.skips)


def test_dropout_of_whole_channels_in_training_alone() -> None:
    model = checks.build("fcn32s", 3, width=WIDTH)
    seen: list[torch.Tensor] = []
    model.score.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x = checks.image(70, 70)
    model.fc7.bias.data.fill_(100.0)  # so that nothing but dropout makes a zero
    model(x)
    assert bool((seen[0] > 0).all())
    model.train()(x)
    alive = (seen[1] > 0).flatten(2)
    assert bool((alive.any(2) == alive.all(2)).all())
    assert 0.3 < float(alive.float().mean()) < 0.7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("conv4_2.bias", "conv4_4.bias", "no use for the key 'conv4_4.bias'"),
        ("upscore16.weight", "upscore8.weight", "no use for the key 'upscore8.weight'"),
        ("score_pool4.weight", None, "missing key 'score_pool4.weight'"),
        ("conv1_1.weight", None, "lacks the key 'conv1_1.weight'"),
    ],
)
def test_wrong_keys_are_named(old: str, new: str | None, message: str) -> None:
    state = plain.FCN(4, stride=16, width=WIDTH).state_dict()
    value = state.pop(old)
    if new is not None:
        state[new] = value
    with pytest.raises(ValueError, match=message):
        models.convert_official_state_dict("fcn16s", state)


def test_wrong_shapes_are_named() -> None:
    state = plain.FCN(4, stride=16, width=WIDTH).state_dict()
    state["fc6.weight"] = state["fc6.weight"].flatten(1)  # as VGG-16's own classifier stores it
    with pytest.raises(ValueError, match=r"'fc6.weight' .* has the shape \[256, 1568\], expected \[256, 32, 7, 7\]"):
        models.convert_official_state_dict("fcn16s", state)


def test_an_unknown_stride_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"stride must be one of \[32, 16, 8\], got 4"):
        models.create_model("fcn8s", 4, stride=4, width=WIDTH)


def test_load_official(tmp_path: Path) -> None:
    official = plain.FCN(4, stride=8, width=WIDTH).eval()
    checks.shake(official)
    torch.save({"state_dict": official.state_dict()}, tmp_path / "fcn.pth")
    model = models.load_official("fcn8s", tmp_path / "fcn.pth").eval()
    x = checks.image(41, 30)
    with torch.no_grad():
        torch.testing.assert_close(model(x), official(x))
