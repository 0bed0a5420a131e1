"""torch.compile of every network into one graph, with the result of eager. Some in every run, all by `make export`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segops import models
from segops.models.hrnet import HRNet
from tests.models import checks

#: Options that make a network small, and the size of its image; classes are 2.
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "scene_parsing_2009": ({}, (46, 50)),
    "fcn32s": ({"width": 4}, (23, 37)),
    "fcn16s": ({"width": 4}, (23, 37)),
    "fcn8s": ({"width": 4}, (23, 37)),
    "fcn8s_atonce": ({"width": 4}, (23, 37)),
    "unet": ({"width": 4}, (40, 40)),
    "unet_valid": ({"width": 4}, (108, 113)),
    "segnet": ({"width": 4}, (23, 37)),
    "segnet_basic": ({"width": 4}, (23, 37)),
    "deconvnet": ({"width": 4}, (224, 224)),
    "dilation8_camvid": ({"width": 4}, (187, 188)),
    "dilation7_kitti": ({"width": 4}, (187, 188)),
    "dilation10_cityscapes": ({"width": 4}, (187, 188)),
    "dilation8_voc": ({"width": 4}, (187, 188)),
    **{f"drn_{name}": ({}, (15, 18)) for name in ("d_22", "d_38", "d_54", "d_105", "c_26", "c_42", "c_58")},
    "hourglass2": ({}, (64, 64)),
    "hourglass8": ({}, (64, 64)),
    **{f"hrnet_{name}": ({}, (33, 40)) for name in ("w18_small_v1", "w18_small_v2", "w18", "w32", "w48", "w48_ocr")},
    "basnet": ({}, (32, 64)),
    "u2net": ({}, (45, 38)),
    "u2netp": ({}, (45, 38)),
    "oct_resnet50": ({}, (64, 32)),
    "csnet_x1": ({}, (32, 48)),
    "csnet_x2": ({}, (32, 48)),
    "csnet_l_x1": ({}, (32, 48)),
    "csnet_l_x2": ({}, (32, 48)),
    "fcn_resnet50": ({}, (15, 18)),
    "deeplabv3_resnet50": ({}, (15, 18)),
}
#: Of each way through the code one that the tests of its family do not compile.
ALWAYS = ("fcn32s", "fcn16s", "unet", "unet_valid", "dilation8_voc", "dilation10_cityscapes", "drn_c_26")


def check(model: models.SegmentationModel, height: int, width: int, **options: Any) -> None:
    x = checks.image(height, width)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = checks.as_list(model(x, **options))
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
        found = checks.as_list(compiled(x, **options))
    torch.testing.assert_close(found, expected)


def test_every_name_is_here() -> None:
    assert list(NETWORKS) == models.list_models()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph(name: str, request: pytest.FixtureRequest) -> None:
    if name not in ALWAYS and not request.config.getoption("--every-export"):
        pytest.skip("make export has every network")
    options, size = NETWORKS[name]
    check(checks.build(name, 2, **options), *size)


@pytest.mark.parametrize("raw_output", [False, True])
def test_one_graph_of_object_contexts(raw_output: bool) -> None:
    """HRNet-OCR, small: its logits alone, and both heads as the published code returns them."""
    model = HRNet(2, width=4, first=(1, 8), blocks=1, modules=(1, 1, 1), ocr=True).eval()
    checks.shake(model)
    check(model, 33, 40, raw_output=raw_output)


def test_one_graph_of_valid_convolutions() -> None:
    """U-Net as the paper has it, on an image that is larger than the logits."""
    check(checks.build("unet_valid", 2, in_channels=3, width=4), 188, 204, raw_output=True)
