"""CSNet before and after pruning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from segops import models
from segops.models import SegmentationModel
from segops.models.csnet import Channels, ConvX100, CSNet
from tests.models import checks
from tests.models.plain import csnet as plain

COUNTS = {"csnet_x1": 210_985, "csnet_x2": 788_631, "csnet_l_x1": 93_647, "csnet_l_x2": 140_894}


@pytest.fixture(scope="module")
def small() -> SegmentationModel:
    return checks.build("csnet_l_x1", 2)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameters(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name)) == count


def test_sizes(small: SegmentationModel) -> None:
    checks.check_sizes(small, 2, [(16, 16), (32, 80)])
    for size in ((40, 32), (32, 17)):
        with pytest.raises(ValueError, match=f"multiples of 16, got {size[0]} x {size[1]}"):
            small(checks.image(*size))


def test_logits_are_at_half_the_size(small: SegmentationModel) -> None:
    with torch.no_grad():
        (logits,) = small.coarse_logits(checks.image(32, 48))
    assert logits.shape == (1, 2, 16, 24)


def test_graphs() -> None:
    """With every kind of layer, and less of them: tracing takes its time with every layer."""
    stages = (((2, 3), (4,)), ((5,),), ((6,),))
    model = CSNet(2, 3, Channels(stages, (3, 2, 2), ((0, 1, 2, 0, 0), (2, 0, 0, 0, 0), (1, 0, 0, 0, 0)), 4))
    checks.shake(model)
    checks.check_graphs(model, 32, 48)


@pytest.mark.parametrize("name", COUNTS)
def test_parity(name: str) -> None:
    network = plain.CSNet(name, num_classes=2, in_channels=4)
    options = {"num_classes": 2, "in_channels": 4}
    checks.check_parity(name, network, checks.image(32, 48, channels=4, batch=2), None, **options)


def test_gradients_are_those_of_the_plain_network() -> None:
    theirs = plain.CSNet("csnet_l_x2").double()
    checks.shake(theirs)
    ours = models.create_model("csnet_l_x2").double()
    ours.load_state_dict(models.convert_official_state_dict("csnet_l_x2", theirs.state_dict()))
    x = checks.image(32, 32, batch=2, dtype=torch.float64)
    for network in (theirs, ours):
        network(x).square().mean().backward()
    state = {key: p.grad for key, p in theirs.named_parameters()} | dict(theirs.named_buffers())
    gradients = models.convert_official_state_dict("csnet_l_x2", state)
    for key, p in ours.named_parameters():
        scale = float(gradients[key].abs().max())
        assert float((p.grad - gradients[key]).abs().max()) <= 1e-6 * max(scale, 1e-6), key


def test_a_hundred_times_the_weight() -> None:
    torch.manual_seed(0)
    layer = ConvX100(4, 6, 3, padding=1)
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(4, 6, 3, padding=1)
    torch.testing.assert_close(layer.weight * 100, dense.weight)
    x = torch.rand(1, 4, 5, 7)
    torch.testing.assert_close(layer(x), dense(x))


def test_16_bit() -> None:
    """As close to the result in float64 as the plain network is in that dtype, or twice as far."""
    theirs = plain.CSNet("csnet_l_x1").eval()
    checks.shake(theirs)
    ours = models.create_model("csnet_l_x1").eval()
    ours.load_state_dict(models.convert_official_state_dict("csnet_l_x1", theirs.state_dict()))
    x = checks.image(32, 48)
    with torch.no_grad():
        exact = theirs.double()(x.double())
        expected, actual = theirs.bfloat16()(x.bfloat16()), ours.bfloat16()(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert float((actual - exact).abs().max()) <= 2 * float((expected - exact).abs().max())


@pytest.mark.parametrize("shift", [0, -1, None])
def test_checkpoint_with_dilations_left_out(tmp_path: Path, shift: int | None) -> None:
    """Their numbers skipped, not counted, or there without channels."""
    official = plain.CSNet("csnet_l_x2").eval()
    checks.shake(official)
    state = {}
    for key, value in official.state_dict().items():
        pruned = re.fullmatch(r"(oct_fuse\.ms\.convs\.[12]\.msconv\.)(\d)(\.weight)", key)
        if pruned is not None and shift is not None:
            key = f"{pruned[1]}{int(pruned[2]) + shift}{pruned[3]}"
        elif pruned is not None:
            state[f"{pruned[1]}0{pruned[3]}"] = value[:0]
        state[f"module.{key}"] = value
    state = {key if key.startswith("module.") else f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 1, "arch": "csnet", "state_dict": state}, tmp_path / "csnet.pth.tar")
    model = models.load_official("csnet_l_x2", tmp_path / "csnet.pth.tar").eval()
    x = checks.image(16, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x, raw_output=True), official(x))


def test_keys_that_do_not_fit() -> None:
    state = plain.CSNet("csnet_l_x1").state_dict()
    without = {key: value for key, value in state.items() if key != "stage2.1.conv3x3_2.prelus.1.weight"}
    with pytest.raises(ValueError, match=r"missing key 'stage2.1.conv3x3_2.prelus.1.weight'"):
        models.convert_official_state_dict("csnet_l_x1", without)
    with pytest.raises(ValueError, match=r"'csnet_l_x1' has no use for the key 'stage2.1.conv5x5.weight'"):
        models.convert_official_state_dict("csnet_l_x1", {**state, "stage2.1.conv5x5.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has the shape \[\d+, .*expected \[\d+"):
        models.convert_official_state_dict("csnet_x1", state)
