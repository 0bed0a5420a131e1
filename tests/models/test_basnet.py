"""BASNet, most of it with a few channels for the 64 of the published network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segops import models
from segops.models import SegmentationModel
from segops.models.basnet import Refinement
from tests.models import checks
from tests.models.plain import basnet as plain

WIDTH = 4


@pytest.fixture(scope="module")
def small() -> SegmentationModel:
    return checks.build("basnet", 2, width=WIDTH)


def test_parameters() -> None:
    model = checks.on_meta("basnet")
    assert checks.parameters(model) == 87_060_360
    with torch.device("meta"):
        assert len(plain.BASNet().state_dict()) == len(model.state_dict())


def test_sizes(small: SegmentationModel) -> None:
    checks.check_sizes(small, 2, [(32, 32), (32, 96)])
    for size in ((48, 32), (32, 33)):
        with pytest.raises(ValueError, match=f"multiples of 32, got {size[0]} x {size[1]}"):
            small(checks.image(*size))


def test_export(small: SegmentationModel) -> None:
    x = checks.image(32, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))


def test_graphs_of_the_refinement() -> None:
    torch.manual_seed(0)
    network = Refinement(3, 4)
    checks.shake(network)
    checks.check_graphs(network, 32, 64)


def test_parity() -> None:
    checks.check_parity("basnet", plain.BASNet(3, WIDTH, 4), checks.image(64, 96, 4, 2), None,
                        num_classes=3, in_channels=4, width=WIDTH)  # fmt: skip


def test_side_outputs(small: SegmentationModel) -> None:
    x = checks.image(64, 96)
    with torch.no_grad():
        coarse = small.coarse_logits(x, True)
        assert [64 // d.shape[2] for d in coarse] == [1, 1, 2, 4, 8, 16, 32, 32]
        assert [96 // d.shape[3] for d in coarse] == [1, 1, 2, 4, 8, 16, 32, 32]
        assert len(small.coarse_logits(x)) == 1
        listed, raw = small(x, side_outputs=True), small(x, raw_output=True)
        torch.testing.assert_close(small(x), listed[0])
    for logits, probability in zip(listed, raw, strict=True):
        torch.testing.assert_close(logits.sigmoid(), probability)


def test_checkpoint_file(tmp_path: Path) -> None:
    official = plain.BASNet(1, WIDTH).eval()
    checks.shake(official)
    torch.save(official.state_dict(), tmp_path / "basnet.pth")
    model = models.load_official("basnet", tmp_path / "basnet.pth").eval()
    x = checks.image(32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x, raw_output=True), official(x))


def test_keys_that_do_not_fit() -> None:
    state = plain.BASNet(1, WIDTH).state_dict()
    without = {key: value for key, value in state.items() if key != "resb5_2.bn1.bias"}
    with pytest.raises(ValueError, match=r"missing key 'resb5_2.bn1.bias'"):
        models.convert_official_state_dict("basnet", without)
    with pytest.raises(ValueError, match=r"'basnet' has no use for the key 'resb7_1.conv1.weight'"):
        models.convert_official_state_dict("basnet", {**state, "resb7_1.conv1.weight": torch.zeros(1)})
