from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segops import models
from tests.models import checks
from tests.models.plain import segnet as plain
from tests.models.plain.caffe import ScaleShift

WIDTH = 8
IMAGE = 127.5  # of images from 0 to 1 to what the normalisation of SegNet-Basic changes


@pytest.mark.parametrize(("name", "count"), [("segnet", 29_449_355), ("segnet_basic", 1_416_587)])
def test_parameters_are_the_published_network_s(name: str, count: int) -> None:
    assert checks.parameters(checks.on_meta(name, 11)) == count


@pytest.mark.parametrize("name", ["segnet", "segnet_basic"])
@pytest.mark.parametrize(("ceil_mode", "sizes"), [(True, [(1, 1), (45, 59)]), (False, [(32, 37), (45, 59)])])
def test_any_size(name: str, ceil_mode: bool, sizes: list[tuple[int, int]]) -> None:
    model = checks.build(name, 3, in_channels=2, ceil_mode=ceil_mode, width=WIDTH)
    checks.check_sizes(model, 3, sizes, channels=2)


@pytest.mark.parametrize(("name", "least"), [("segnet", 32), ("segnet_basic", 16)])
def test_floor_pooling_needs_a_pixel_of_every_pooling(name: str, least: int) -> None:
    model = checks.build(name, 3, ceil_mode=False, width=WIDTH)
    assert model(checks.image(least, least)).shape == (1, 3, least, least)
    with pytest.raises(
        ValueError, match=f"at least {least} x {least} pixels with ceil_mode=False, got 40 x {least - 1}"
    ):
        model(checks.image(40, least - 1))


@pytest.mark.parametrize("name", ["segnet", "segnet_basic"])
def test_one_graph(name: str) -> None:
    checks.check_graphs(checks.build(name, 3, width=WIDTH), 23, 37)


@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("names", [plain.CAFFE, plain.DELTA_ONERA, plain.VINCEECWS, plain.SAY4N])
def test_outputs_and_keys_of_every_port(names: tuple[str, ...], ceil_mode: bool) -> None:
    official = plain.SegNet(4, names, ceil_mode=ceil_mode, width=WIDTH)
    options = {"num_classes": 4, "ceil_mode": ceil_mode, "width": WIDTH}
    checks.check_parity("segnet", official, checks.image(45, 37, batch=2), None, **options)


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_outputs_of_segnet_basic(ceil_mode: bool) -> None:
    official = plain.SegNetBasic(4, ceil_mode=ceil_mode, width=WIDTH)
    options = {"num_classes": 4, "ceil_mode": ceil_mode, "width": WIDTH}
    checks.check_parity("segnet_basic", official, IMAGE * checks.image(45, 37), None, **options)


def _as_scale_and_shift(state: dict[str, Tensor]) -> dict[str, Tensor]:
    kinds = {"weight": "scale", "bias": "shift"}
    return {
        key.rpartition(".")[0] + "." + kinds[key.rpartition(".")[2]] if "_bn." in key else key: value
        for key, value in state.items()
    }


def _as_blobs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[None, :, None, None] if "_bn." in key else value for key, value in state.items()}


@pytest.mark.parametrize("name", ["segnet", "segnet_basic"])
@pytest.mark.parametrize("change", [dict, _as_scale_and_shift, _as_blobs])
def test_norms_of_scale_and_shift_alone(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    kind: Callable[..., nn.Module] = plain.SegNet if name == "segnet" else plain.SegNetBasic
    official = kind(4, norm=ScaleShift, width=WIDTH).double().eval()
    checks.shake(official)
    state = models.convert_official_state_dict(name, change(official.state_dict()))
    model = models.create_model(name, 4, width=WIDTH).double().eval()
    model.load_state_dict(state)
    x = IMAGE * checks.image(29, 31, dtype=torch.float64)
    with torch.no_grad():
        expected = official(x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_what_ports_register_and_do_not_use() -> None:
    official = plain.SegNet(4, plain.VINCEECWS, width=WIDTH)
    official.BNDe11 = nn.BatchNorm2d(4)
    state = {**official.state_dict(), "vgg16.features.0.weight": torch.zeros(1)}
    assert set(models.convert_official_state_dict("segnet", state)) == set(
        checks.on_meta("segnet", 4, width=WIDTH).state_dict()
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("segnet", "conv4_2_bn.bias", "conv4_2_bn.offset", "no use for the key 'conv4_2_bn.offset'"),
        ("segnet", "conv3_1_D_bn.running_var", None, "missing key 'conv3_1_D_bn.running_var'"),
        ("segnet", "conv1_1_D.weight", None, "lacks the key 'conv1_1_D.weight'"),
        ("segnet_basic", "conv_decode4.bias", None, "missing key 'conv_decode4.bias'"),
        ("segnet_basic", "conv1.weight", "conv5.weight", "no use for the key 'conv5.weight'"),
    ],
)
def test_wrong_keys_are_named(name: str, old: str, new: str | None, message: str) -> None:
    state = (plain.SegNet if name == "segnet" else plain.SegNetBasic)(4, width=WIDTH).state_dict()
    value = state.pop(old)
    if new is not None:
        state[new] = value
    with pytest.raises(ValueError, match=message):
        models.convert_official_state_dict(name, state)


def test_load_official(tmp_path: Path) -> None:
    official = plain.SegNet(4, plain.DELTA_ONERA, ceil_mode=False, width=WIDTH).eval()
    checks.shake(official)
    torch.save({"state_dict": {f"module.{k}": v for k, v in official.state_dict().items()}}, tmp_path / "segnet.pth")
    model = models.load_official("segnet", tmp_path / "segnet.pth", ceil_mode=False).eval()
    x = checks.image(64, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), official(x))


def test_indices_of_one_byte_are_kept() -> None:
    model = checks.build("segnet", 3, width=WIDTH).train()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(checks.image(64, 64))
    integers = [tensor for tensor in kept if not tensor.dtype.is_floating_point and tensor.numel() >= 32]
    assert integers
    assert {tensor.dtype for tensor in integers} == {torch.uint8}
