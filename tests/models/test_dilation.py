from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segops import models
from tests.models import checks
from tests.models.plain import dilation as plain

WIDTH = 4
NAMES = list(plain.CONTEXTS)


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("dilation8_camvid", 11, 134_313_443),
        ("dilation8_voc", 21, 141_149_720),
        ("dilation7_kitti", 11, 134_312_343),
        ("dilation10_cityscapes", 19, 134_373_043),
    ],
)
def test_parameters_are_the_published_network_s(name: str, num_classes: int, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, num_classes)) == count


@pytest.mark.parametrize("name", ["dilation8_camvid", "dilation10_cityscapes", "dilation8_voc"])
def test_any_size_of_187_pixels_and_more(name: str) -> None:
    model = checks.build(name, 2, in_channels=1, width=WIDTH)
    checks.check_sizes(model, 2, [(187, 200)], channels=1)


@pytest.mark.parametrize(
    ("raw", "height", "width", "message"),
    [
        (False, 186, 300, "must have at least 187 x 187, got 186 x 300"),
        (True, 400, 372, "at least 373 x 373, got 400 x 372"),
    ],
)
def test_smaller_images_are_errors(raw: bool, height: int, width: int, message: str) -> None:
    model = checks.on_meta("dilation7_kitti", 2, width=WIDTH)
    with pytest.raises(ValueError, match=message):
        model(torch.empty(1, 3, height, width, device="meta"), raw_output=raw)


def test_one_graph() -> None:
    checks.check_graphs(checks.build("dilation7_kitti", 2, width=WIDTH), 187, 188)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_keys(name: str) -> None:
    official = plain.DilatedNet(name, 3, width=WIDTH)
    checks.check_parity(name, official, checks.image(377, 412), None, num_classes=3, width=WIDTH)


@pytest.mark.parametrize("name", ["dilation8_camvid", "dilation10_cityscapes"])
@pytest.mark.parametrize(("height", "width"), [(192, 200), (190, 201)])
def test_logits_stay_over_their_pixels(name: str, height: int, width: int) -> None:
    model = checks.build(name, 3, width=WIDTH).double()
    nn.init.normal_(model.front_end.final.weight)
    x = checks.image(height, width, dtype=torch.float64)
    with torch.no_grad():
        logits = model(F.pad(x, (186, 186, 186, 186), mode="reflect"), raw_output=True)
        if name == "dilation8_camvid":
            assert logits.shape[2:] == (-(-height // 8), -(-width // 8))
            logits = F.interpolate(logits, scale_factor=8, mode="bilinear")
        torch.testing.assert_close(model(x), logits[:, :, :height, :width])
    coarse = model.coarse_logits(x)[0].shape[2:]
    assert coarse == ((24, 25) if name == "dilation8_camvid" and height == 192 else (height, width))


def test_receptive_fields_of_the_context_module() -> None:
    context = checks.build("dilation8_camvid", 2, width=WIDTH).context
    size, centre = 75, 37
    x = torch.rand(1, 2, size, size, requires_grad=True)
    for layer in context:
        nn.init.ones_(layer.weight)  # nothing is cut by a ReLU or cancels
        nn.init.zeros_(layer.bias)
    fields = []
    for length in range(1, len(context) + 1):
        (grad,) = torch.autograd.grad(context[:length](x)[0, 0, centre, centre], x)
        rows = grad[0].abs().sum((0, 2)).nonzero().flatten()
        fields.append(int(rows.max() - rows.min()) + 1)
    assert fields == [3, 5, 9, 17, 33, 65, 67, 67]


@pytest.mark.parametrize("name", ["dilation8_camvid", "dilation7_kitti"])
def test_context_begins_as_the_identity(name: str) -> None:
    context = models.create_model(name, 3, width=WIDTH).context
    x = checks.image(9, 11)
    torch.testing.assert_close(context(x), x)


def test_large_context_begins_near_the_identity() -> None:
    k = 3
    context = models.create_model("dilation8_voc", k, width=WIDTH).context
    for layer in context:
        c_in, c_out, size = layer.in_channels, layer.out_channels, layer.kernel_size[0]
        for b in range(0, c_out, 5):
            for a in range(0, c_in, 7):
                if a * k // c_in == b * k // c_out:
                    centre = float(layer.weight[b, a, size // 2, size // 2].detach())
                    assert centre == pytest.approx(k / (c_in + c_out))
    noise = context[3].weight[:, :, 0, 0].detach()
    assert float(noise.std()) == pytest.approx(0.01, rel=0.2)
    x = torch.zeros(1, k, 9, 9)
    x[:, 1] = 1
    assert int(context(x)[0].mean((1, 2)).argmax()) == 1


def test_the_upsampling_is_frozen() -> None:
    model = checks.on_meta("dilation10_cityscapes", 2, width=WIDTH)
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["upsample.weight"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dilation8_voc", "fc-final.weight", "final.weight", "no use for the key 'final.weight'"),
        ("dilation7_kitti", "ctx_conv4_1.bias", "ctx_conv5_1.bias", r"no use for the key 'ctx_conv5_1\.bias'"),
        ("dilation7_kitti", "ctx_fc1.bias", "ctx_upsample.weight", "no use for the key 'ctx_upsample.weight'"),
        ("dilation10_cityscapes", "ctx_upsample.weight", None, "missing key that becomes 'upsample.weight'"),
    ],
)
def test_wrong_keys_are_named(name: str, old: str, new: str | None, message: str) -> None:
    state = plain.DilatedNet(name, 3, width=WIDTH).state_dict()
    value = state.pop(old)
    if new is not None:
        state[new] = value
    with pytest.raises(ValueError, match=message):
        models.convert_official_state_dict(name, state)


def test_load_official(tmp_path: Path) -> None:
    official = plain.DilatedNet("dilation8_voc", 3, width=WIDTH).eval()
    checks.shake(official)
    torch.save(official.state_dict(), tmp_path / "dilation.pth")
    model = models.load_official("dilation8_voc", tmp_path / "dilation.pth").eval()
    x = checks.image(380, 376)
    with torch.no_grad():
        torch.testing.assert_close(model(x, raw_output=True), official(x))
