from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segops import models
from tests.models import checks
from tests.models.plain import unet as plain

WIDTH = 4


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("unet", {}, 31_037_698),
        ("unet", {"bilinear": True}, 17_263_042),
        ("unet_valid", {"in_channels": 1}, 31_030_658),
    ],
)
def test_parameters_are_the_published_network_s(name: str, options: dict[str, int], count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 2, **options)) == count


@pytest.mark.parametrize("bilinear", [False, True])
def test_any_size_of_16_and_more(bilinear: bool) -> None:
    model = checks.build("unet", 3, in_channels=2, bilinear=bilinear, width=WIDTH)
    checks.check_sizes(model, 3, [(16, 16), (16, 35), (47, 32)], channels=2)
    with pytest.raises(ValueError, match="at least 16 pixels a side, got 40 x 15"):
        model(checks.image(40, 15, 2))


def test_valid_at_the_image_s_size_is_the_network_on_the_reflected_image() -> None:
    model = checks.build("unet_valid", 3, in_channels=2, width=WIDTH)
    checks.check_sizes(model, 3, [(108, 113)], channels=2)
    x = checks.image(108, 113, 2)
    after = {108: 100, 113: 95}
    padded = torch.nn.functional.pad(x, (92, after[113], 92, after[108]), mode="reflect")
    with torch.no_grad():
        assert torch.equal(model(x), model(padded, raw_output=True)[..., :108, :113])


def test_valid_logits_are_those_of_the_pixels_they_lie_on() -> None:
    model = checks.build("unet_valid", 2, in_channels=1, width=WIDTH)
    x = checks.image(124, 108, 1)
    with torch.no_grad():
        whole, part = model(x), model(x[..., 16:, :])  # moved by one cell of the lowest level
    torch.testing.assert_close(whole[..., 112:, :], part[..., 96:, :])

    model.get_parameter("up.3.up.weight").data.zero_()  # what is left are four 3x3 convolutions around each pixel
    peak = torch.zeros(1, 1, 108, 108)
    peak[..., 54, 57] = 1
    with torch.no_grad():
        rows, columns = (model(peak) != model(0 * peak)).any(1)[0].nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max())) == (50, 58)
    assert (int(columns.min()), int(columns.max())) == (53, 61)


@pytest.mark.parametrize(("raw", "least"), [(False, 108), (True, 188)])
def test_valid_needs_context(raw: bool, least: int) -> None:
    model = checks.on_meta("unet_valid", 2, width=WIDTH)
    with pytest.raises(ValueError, match=f"at least {least} pixels a side, got 300 x {least - 1}"):
        model(torch.empty(1, 3, 300, least - 1, device="meta"), raw_output=raw)
    assert model(torch.empty(1, 3, least, least, device="meta"), raw_output=raw).shape[1] == 2


def test_valid_published_sizes() -> None:
    model = checks.on_meta("unet_valid", 2, in_channels=1)
    assert model(torch.empty(1, 1, 572, 572, device="meta"), raw_output=True).shape == (1, 2, 388, 388)


def test_one_graph() -> None:
    """At 40 pixels one level is odd, so that both ways through the decoder are in the graph."""
    checks.check_graphs(checks.build("unet", 3, bilinear=True, width=WIDTH), 40, 40)


@pytest.mark.parametrize("size", [(32, 48), (45, 63), (31, 16)])
@pytest.mark.parametrize("bilinear", [False, True])
def test_outputs_and_keys_of_the_official_network(bilinear: bool, size: tuple[int, int]) -> None:
    official = plain.UNet(4, bilinear=bilinear, width=WIDTH)
    checks.check_parity("unet", official, checks.image(*size), None, num_classes=4, bilinear=bilinear, width=WIDTH)


@pytest.mark.parametrize("size", [(188, 204), (197, 219)])
def test_outputs_and_keys_of_the_valid_network(size: tuple[int, int]) -> None:
    official = plain.UNetValid(4, width=WIDTH)
    checks.check_parity("unet_valid", official, checks.image(*size, 1), None, num_classes=4, in_channels=1, width=WIDTH)


@pytest.mark.parametrize("bilinear", [False, True])
def test_files(bilinear: bool, tmp_path: Path) -> None:
    official = plain.UNet(5, in_channels=2, bilinear=bilinear, width=WIDTH).eval()
    checks.shake(official)
    torch.save({**official.state_dict(), "mask_values": [0, 1]}, tmp_path / "unet.pth")
    model = models.load_official("unet", tmp_path / "unet.pth").eval()
    x = checks.image(29, 35, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(x), official(x), rtol=1e-4, atol=1e-4)


def test_keys_of_another_network_are_named() -> None:
    state = plain.UNet(2, width=WIDTH).state_dict()
    lacking = {key: value for key, value in state.items() if key != "up2.conv.double_conv.3.weight"}
    with pytest.raises(ValueError, match=r"missing key 'up2\.conv\.double_conv\.3\.weight'"):
        models.convert_official_state_dict("unet", lacking)
    with pytest.raises(ValueError, match=r"'up5\.up\.bias'"):
        models.convert_official_state_dict("unet", {**state, "up5.up.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no use for the key 'inc\.double_conv\.0\.weight'"):
        models.convert_official_state_dict("unet_valid", state)


def test_the_paper_s_initialisation() -> None:
    torch.manual_seed(0)
    model = models.create_model("unet_valid", 2, width=16)
    weight = model.get_parameter("down.2.1.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert float(model.get_parameter("down.2.1.bias").detach().abs().max()) == 0
