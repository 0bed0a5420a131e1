from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segops import models
from segops.models.unpooling import as_convolution
from tests.models import checks
from tests.models.plain import deconvnet as plain
from tests.models.plain.caffe import ScaleShift

WIDTH = 4


def test_parameters_are_the_published_network_s() -> None:
    assert checks.parameters(checks.on_meta("deconvnet", 21)) == 251_805_653


def test_sizes() -> None:
    checks.check_sizes(
        checks.build("deconvnet", 3, in_channels=1, width=WIDTH), 3, [(224, 224), (288, 224)], channels=1
    )


@pytest.mark.parametrize(("height", "width"), [(192, 224), (224, 192), (240, 224), (224, 225)])
def test_other_sizes_are_errors(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32 and at least 224, got {height} x {width}"):
        checks.on_meta("deconvnet", 3, width=WIDTH)(torch.empty(1, 3, height, width, device="meta"))


def test_one_graph() -> None:
    checks.check_graphs(checks.build("deconvnet", 3, width=WIDTH), 224, 224)


def test_outputs_and_keys() -> None:
    official = plain.DeconvNet(4, width=WIDTH)
    checks.check_parity("deconvnet", official, checks.image(224, 256), None, num_classes=4, width=WIDTH)


def test_norms_of_scale_and_shift_alone() -> None:
    official = plain.DeconvNet(4, norm=ScaleShift, width=WIDTH)
    checks.check_parity("deconvnet", official, checks.image(224, 224), None, num_classes=4, width=WIDTH)


def test_a_transposed_convolution_of_stride_1_is_a_convolution() -> None:
    x, weight = checks.image(6, 7, dtype=torch.float64), torch.randn(3, 5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, as_convolution(weight), padding=1), F.conv_transpose2d(x, weight, padding=1))


def test_wrong_keys_are_named() -> None:
    state = plain.DeconvNet(4, width=WIDTH).state_dict()
    state["deconv5_4.weight"] = state.pop("deconv5_3.weight")
    with pytest.raises(ValueError, match=r"no use for the key 'deconv5_4.weight'"):
        models.convert_official_state_dict("deconvnet", state)
    del state["deconv5_4.weight"]
    with pytest.raises(ValueError, match=r"missing key 'deconv5_3.weight'"):
        models.convert_official_state_dict("deconvnet", state)


def test_load_official(tmp_path: Path) -> None:
    official = plain.DeconvNet(4, width=WIDTH).eval()
    checks.shake(official)
    torch.save(official.state_dict(), tmp_path / "deconvnet.pth")
    model = models.load_official("deconvnet", tmp_path / "deconvnet.pth").eval()
    x = checks.image(224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), official(x), rtol=1e-4, atol=1e-4)
