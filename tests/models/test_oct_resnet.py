from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from segops import models
from segops.models.oct_resnet import OctResNet
from tests.models import checks
from tests.models.plain.oct_resnet import OctResNet50


@pytest.mark.parametrize("alpha", [0.125, 0.25, 0.5])
def test_as_many_weights_as_in_resnet50(alpha: float) -> None:
    """Norms and convolutions are divided among frequencies, not multiplied."""
    with torch.device("meta"):
        dense = torchvision.models.resnet50()
    assert (
        checks.parameters(checks.on_meta("oct_resnet50", 1000, alpha=alpha)) == checks.parameters(dense) == 25_557_032
    )


def small() -> OctResNet:
    model = OctResNet(3, blocks=(1, 1, 1, 1)).eval()
    checks.shake(model)
    return model


def test_sizes() -> None:
    checks.check_sizes(small(), 3, [(32, 64)])
    with pytest.raises(ValueError, match=r"multiples of 32, got 64 x 48"):
        checks.on_meta("oct_resnet50", 3)(torch.empty(1, 3, 64, 48, device="meta"))


def test_one_graph() -> None:
    checks.check_graphs(small(), 64, 32)


@pytest.mark.parametrize("alpha", [0.5, 0.125])
def test_outputs_and_keys(alpha: float) -> None:
    """The mean of the dense logits is what the classifier says of the image."""
    plain = OctResNet50(4, alpha)
    model = checks.check_parity(
        "oct_resnet50", plain, checks.image(64, 96), lambda m, x: m(x, raw_output=True).mean((2, 3)),
        num_classes=4, alpha=alpha,
    )  # fmt: skip
    assert model(checks.image(64, 96).double(), raw_output=True).shape == (1, 4, 2, 3)


def test_without_low_frequencies_it_is_resnet50_but_for_its_strides() -> None:
    """Which are averages before 3x3 and 1x1 convolutions there."""
    model = checks.on_meta("oct_resnet50", 5, alpha=0.0)
    assert not any("_l2" in key or "low" in key or "2l" in key for key in model.state_dict())
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\), got 1"):
        models.create_model("oct_resnet50", 5, alpha=1)


def test_checkpoint_file(tmp_path: Path) -> None:
    plain = OctResNet50(3, 0.25)
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.state_dict().items()}}, tmp_path / "oct.pth")
    model = models.load_official("oct_resnet50", tmp_path / "oct.pth").eval()
    x = checks.image(32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x, raw_output=True).mean((2, 3)), plain.eval()(x), atol=1e-4, rtol=1e-3)
    state = plain.state_dict()
    with pytest.raises(ValueError, match=r"no use for the key 'layer5\.0\.bn_h\.bias'"):
        models.convert_official_state_dict("oct_resnet50", {**state, "layer5.0.bn_h.bias": torch.ones(1)})
    del state["fc.bias"]
    with pytest.raises(ValueError, match=r"missing key 'fc\.bias'"):
        models.convert_official_state_dict("oct_resnet50", state)
