"""One network of each family as a saved torch.export program, run in a fresh process, and as ONNX, run by ONNX Runtime.

`make test` has some families, `make export` all of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

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

    onnx = segops.onnx.export(program, (), verbose=False)
    assert {node.domain for node in onnx.model.graph} <= {""}
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))

    if family != "segnet" and not everything:
        return
    files = [str(tmp_path / file) for file in ("program.pt2", "image.pt", "output.pt")]
    torch.export.save(program, files[0])
    torch.save(x, files[1])
    subprocess.run([sys.executable, "-c", RUN, *files], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(files[2]), expected)
