"""One network of each family as a saved torch.export program, run in a fresh process, and as ONNX, run by ONNX Runtime.

`make test` has some families, `make export` all of them. Each is exported for one size, and for any batch, height and
width.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import segops
from segops.models.registry import FAMILIES
from tests.models import checks

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

#: A network of each family and the size of its image; classes are 3.
NETWORKS = {
    "scene_parsing": ("scene_parsing_2009", (46, 60)),
    "fcn": ("fcn8s", (48, 64)),
    "unet": ("unet", (48, 64)),
    "segnet": ("segnet_basic", (48, 60)),
    "deconvnet": ("deconvnet", (224, 224)),
    "dilation": ("dilation8_camvid", (190, 190)),
    "drn": ("drn_d_22", (48, 72)),
    "hourglass": ("hourglass2", (64, 64)),
    "hrnet": ("hrnet_w18_small_v1", (64, 96)),
    "basnet": ("basnet", (64, 64)),
    "u2net": ("u2netp", (64, 80)),
    "oct_resnet": ("oct_resnet50", (64, 64)),
    "csnet": ("csnet_x1", (64, 64)),
    "torchvision_heads": ("deeplabv3_resnet50", (48, 64)),
}
#: What the sides of an image are multiples of, where not every size will do, the smallest multiple, and the size of the
#: image that a graph of any size is made from: a map of one pixel would always be one.
MULTIPLES = {
    "deconvnet": (32, 7, (256, 288)),
    "hourglass": (64, 1, (128, 192)),
    "basnet": (32, 1, (64, 96)),
    "oct_resnet": (32, 1, (64, 96)),
    "csnet": (16, 1, (64, 96)),
}
#: The quick ones; tests/test_onnx.py has every operator.
ALWAYS = ("scene_parsing", "segnet", "drn")
#: Between the sums of ONNX Runtime and those of segops, of up to 180 layers, in units of the largest logit.
TOLERANCE = 1e-5

RUN = """
import sys, torch, segops
program, image, output = sys.argv[1:]
torch.save(torch.export.load(program).module()(torch.load(image)), output)
"""


def test_every_family_is_here() -> None:
    assert set(NETWORKS) == set(FAMILIES)
    assert all(name in FAMILIES[family] for family, (name, _) in NETWORKS.items())


def session_of(onnx: Any) -> Any:
    assert {node.domain for node in onnx.model.graph} <= {""}
    return onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


def check_onnx(session: Any, x: Tensor, expected: Tensor) -> None:
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("family", NETWORKS)
def test_runs_elsewhere(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    everything = request.config.getoption("--every-export")
    if family not in ALWAYS and not everything:
        pytest.skip("make export has every family")
    name, size = NETWORKS[family]
    model, x = checks.build(name, 3), checks.image(*size)
    with torch.no_grad():
        expected = model(x)
    assert float(expected.std()) > 1e-3

    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), expected)

    check_onnx(session_of(segops.onnx.export(program, (), verbose=False)), x, expected)

    if family != "segnet" and not everything:
        return
    files = [str(tmp_path / file) for file in ("program.pt2", "image.pt", "output.pt")]
    torch.export.save(program, files[0])
    torch.save(x, files[1])
    subprocess.run([sys.executable, "-c", RUN, *files], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(files[2]), expected)


def open_sizes(family: str) -> dict[int, Any]:
    """The argument `dynamic_shapes` of an image: its batch, height and width."""
    if family not in MULTIPLES:
        return {axis: Dim.DYNAMIC for axis in (0, 2, 3)}
    multiple, least, _ = MULTIPLES[family]
    height, width = (multiple * Dim(side, min=least, max=4096) for side in ("height", "width"))
    return {0: Dim.DYNAMIC, 2: height, 3: width}


@pytest.mark.parametrize("family", [family for family in NETWORKS if family != "dilation"])  # docs/limits.md
def test_any_size_runs_elsewhere(family: str, request: pytest.FixtureRequest) -> None:
    """Exported from one image and run on others: of another batch, and of sides of which none divides another."""
    if family != "segnet" and not request.config.getoption("--every-export"):
        pytest.skip("make export has every family")
    name, size = NETWORKS[family]
    # With all their channels these have windows whose maxima differ by less than a sum's rounding, and either may win.
    model = checks.build(name, 3, **({"width": 8} if family in ("segnet", "deconvnet") else {}))
    shapes = open_sizes(family)
    multiple, _, (height, width) = MULTIPLES.get(family, (1, 1, size))
    first = checks.image(height, width, batch=2)
    program = torch.export.export(model, (first,), dynamic_shapes=(shapes,))
    session = session_of(segops.onnx.export(program, (), verbose=False))
    steps = ((0, 0, 2), (1, 0, 3)) if multiple > 1 else ((0, 0, 2), (11, 7, 3), (2, 20, 1))
    for down, right, batch in steps:
        x = checks.image(height + down * multiple, width + right * multiple, batch=batch)
        with torch.no_grad():
            expected = model(x)
        assert float(expected.std()) > 1e-3
        assert torch.equal(program.module()(x), expected)
        check_onnx(session, x, expected)
    if multiple > 1:
        with pytest.raises(AssertionError, match="Guard failed"):
            program.module()(checks.image(height + 1, width))


def test_open_sizes_straight_to_onnx(tmp_path: Path) -> None:
    """By the options of torch.onnx.export, with names for the axes."""
    model = checks.build("segnet_basic", 3, width=8)
    axes = {0: Dim("images"), 2: Dim("height"), 3: Dim("width")}
    path = tmp_path / "segnet.onnx"
    segops.onnx.export(model, (checks.image(48, 60, batch=2),), path, dynamic_shapes=(axes,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["images", 3, "height", "width"]
    for size in ((48, 60), (37, 83)):
        x = checks.image(*size)
        with torch.no_grad():
            check_onnx(session, x, model(x))
