"""summary against known receptive fields, those that gradients show, torch's count of operations, and sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import segops.nn
from segops.models import summary
from tests.models import checks

Conv = Callable[..., nn.Module]


@pytest.mark.parametrize("conv", [nn.Conv2d, segops.nn.DilatedConv2d, segops.nn.ConvNormAct])
def test_context_module(conv: Conv) -> None:
    """Yu and Koltun 2016, table 1: also where the image is smaller than that."""
    layers = [conv(2, 2, 3, padding=d, dilation=d) for d in (1, 1, 2, 4, 8, 16, 1)] + [conv(2, 2, 1)]
    found = summary(nn.Sequential(*layers), (40, 24))
    assert [layer.receptive_field for layer in found.layers] == [(n, n) for n in (3, 5, 9, 17, 33, 65, 67, 67)]
    assert all(layer.output_shape == (1, 2, 40, 24) for layer in found.layers)
    assert found.receptive_field == (67, 67)
    assert found.output_stride == 1


@pytest.mark.parametrize("room", [segops.nn, nn])
def test_vgg_up_to_fc7(room: object) -> None:
    """FCN-32s: 212 pixels after the last pooling, 404 after fc6 and fc7, 32 pixels apart."""
    conv = segops.nn.DilatedConv2d if room is segops.nn else nn.Conv2d
    layers: list[nn.Module] = []
    channels = 3
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        for i in range(count):
            layers += [conv(channels, 2, 3, padding=100 if stage == i == 0 else 1), nn.ReLU()]
            channels = 2
        layers.append(room.MaxPool2d(2, ceil_mode=True))
    layers += [conv(2, 2, 7), nn.ReLU(), conv(2, 2, 1)]
    found = summary(nn.Sequential(*layers), (97, 130))
    assert found.receptive_field == (404, 404)
    assert found.output_stride == 32
    pools = [layer for layer in found.layers if layer.kind == "MaxPool2d"]
    assert [layer.receptive_field for layer in pools] == [(n, n) for n in (6, 16, 44, 100, 212)]
    assert [layer.output_stride for layer in pools] == [(n, n) for n in (2, 4, 8, 16, 32)]


class Branches(nn.Module):
    """Strides, dilation, both kinds of interpolation, a transposed convolution, crops and paths that meet."""

    def __init__(self, up: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.down = nn.Conv2d(1, 1, (3, 5), stride=2, padding=(1, 2))
        self.deep = segops.nn.DilatedConv2d(1, 1, 3, padding=2, dilation=2)
        self.transposed = nn.ConvTranspose2d(1, 1, 4, 2, 1)
        self.join = nn.Conv2d(2, 1, 3)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.deep(self.down(F.avg_pool2d(x, 2)))
        if self.up == "transposed":
            y = self.transposed(self.transposed(y))
        elif self.up == "cat":
            return self.join(segops.upsample_cat(y, x))
        elif self.up == "nearest":
            y = F.interpolate(y, x.shape[2:])
        else:
            y = F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=self.up == "corners")
        y = F.pad(y[..., 1:-1, -(y.shape[3] - 3) :], (1, 2, 1, 1))
        return self.join(torch.cat([x, y], 1))


class Unpooling(nn.Module):
    def __init__(self, pool: nn.Module, unpool: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
        self.pool, self.unpool = pool, unpool

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y, indices = self.pool(x)
        return self.last(self.unpool(self.middle(y), indices, output_size=x.shape[2:]))


def seen(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The largest extent of the pixels that a gradient of an output far from the border reaches, over some images."""
    model = model.double()
    for p in model.parameters():
        p.data.abs_().add_(0.1)  # nothing cancels
    touched: dict[tuple[int, int], Tensor] = {}
    for seed in range(25):
        x = torch.rand(1, 1, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        x.requires_grad_()
        y = model(x)
        middle = [(r, c) for r in range(height // 2 - 4, height // 2 + 4) for c in (width // 2, width // 2 + 1)]
        middle += [(height // 2, c) for c in range(width // 2 - 4, width // 2 + 4)]
        for at in middle:
            (gradient,) = torch.autograd.grad(y[0, 0][at], x, retain_graph=True)
            touched[at] = touched.get(at, torch.tensor(False)) | (gradient[0, 0] != 0)
        if not isinstance(model, Unpooling):  # where it depends on the image which pixel wins
            break
    extents = [[int(where.max() - where.min()) + 1 for where in mask.nonzero().unbind(1)] for mask in touched.values()]
    return max(e[0] for e in extents), max(e[1] for e in extents)


@pytest.mark.parametrize("up", ["transposed", "cat", "nearest", "bilinear", "corners"])
def test_receptive_field_is_what_gradients_reach(up: str) -> None:
    size = (48, 64) if up != "corners" else (49, 65)
    model = Branches(up)
    assert summary(model, size).receptive_field == seen(model, *size)


@pytest.mark.parametrize("room", [segops.nn, nn])
def test_receptive_field_of_unpooling(room: object) -> None:
    model = Unpooling(room.MaxPool2d(2, return_indices=True), room.MaxUnpool2d(2))
    assert summary(model, (24, 32)).receptive_field == seen(model, 24, 32)


def test_what_depends_on_all() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x * self.linear(x.mean((2, 3)))[:, :, None, None]

    found = summary(Gate(), 16)
    assert found.receptive_field == (math.inf, math.inf)
    assert found.layers[0].receptive_field == (3, 3)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4))
        self.up = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.head = nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.ones(1))
        self.twice = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.up(self.body(x))))
        return self.head(y.mean((2, 3))) * self.scale


def test_multiply_adds_are_half_of_torch_s_operations() -> None:
    model = Mixed()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 33, 21))
    found = summary(model, (33, 21))
    assert 2 * found.multiply_adds == counter.get_total_flops()
    assert {layer.name: layer.parameters for layer in found.layers} == {
        "body.0": 8 * 3 * 9 + 8,
        "body.1": 16,
        "body.2": 0,
        "body.3": 8 * 2 * 9 + 8,
        "up": 8 * 6 * 16 + 6,
        "twice": 42,
        "": 1,
        "head": 35,
    }
    assert found.parameters == sum(layer.parameters for layer in found.layers)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_multiply_adds_are_torchvision_s(name: str) -> None:
    """Published with its weights, in units of 10^9, the auxiliary head included."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    model = checks.on_meta(name, 21)
    model.side_outputs = True
    found = summary(model, 520)
    assert found.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=6e-4)
    assert found.parameters == weights.meta["num_params"]
    assert found.output_stride == 8


@pytest.mark.parametrize(
    ("name", "published"), [("hrnet_w18_small_v1", 31.1), ("hrnet_w18_small_v2", 71.6), ("hrnet_w48", 696.2)]
)
def test_multiply_adds_are_hrnet_s(name: str, published: float) -> None:
    """What its README calls GFLOPs, at 1024 x 2048: multiply-adds in units of 2^30."""
    found = summary(checks.on_meta(name, 19), (1024, 2048))
    assert found.multiply_adds / 2**30 == pytest.approx(published, abs=0.05)
    assert found.output_stride == 32


def test_fields_and_strides_of_networks() -> None:
    """FCN-32s: two pixels of fc7, 404 each and 32 apart. A dilated front end: 380; behind it a context module of
    67, two pixels of which, 8 apart, see 916. The strides of the others: two for each pooling."""
    assert summary(checks.on_meta("fcn32s", 21), 500).receptive_field == (404 + 32,) * 2
    dilated = checks.on_meta("dilation8_camvid", 11)
    front_end = summary(dilated.front_end, 600)
    assert (front_end.receptive_field, front_end.output_stride) == ((380, 380), 8)
    assert summary(dilated, 600).receptive_field == (380 + 66 * 8 + 8,) * 2
    for name, stride in (
        ("unet", 16),
        ("segnet_basic", 16),
        ("hourglass2", 64),
        ("drn_d_22", 8),
        ("hrnet_w48_ocr", 32),
    ):
        assert summary(checks.on_meta(name, 2), 128).output_stride == stride


def test_operators_of_segops_count_as_those_of_torch() -> None:
    ours = nn.Sequential(segops.nn.ConvNormAct(3, 8, 3, stride=2), segops.nn.DilatedConv2d(8, 4, 3, dilation=2))
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, dilation=2))
    a, b = summary(ours, (31, 40)), summary(theirs, (31, 40))
    assert (a.parameters, a.multiply_adds, a.receptive_field) == (b.parameters, b.multiply_adds, b.receptive_field)
    assert [layer.parameters for layer in a.layers] == [3 * 8 * 9 + 16, 8 * 4 * 9 + 4]


def test_memory() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 3, padding=1))
    found = summary(chain, 10)
    pixels = 100 * 4
    assert [layer.activation_bytes for layer in found.layers] == [8 * pixels, 0, 2 * pixels]
    assert found.activation_bytes == 10 * pixels
    assert found.peak_activation_bytes == (3 + 8 + 2) * pixels  # the image is the caller's
    assert summary(chain.double(), 10).peak_activation_bytes == 2 * found.peak_activation_bytes


def test_the_network_stays_as_it_is() -> None:
    with torch.device("meta"):
        model = Mixed()
    model.body.eval()
    found = summary(model, 20)
    assert model.training
    assert not model.body[1].training
    assert not model.twice._forward_hooks
    assert found == summary(Mixed(), 20)
    assert all(p.device.type == "meta" for p in model.parameters())


def test_bad_arguments() -> None:
    model = nn.Sequential(nn.ReLU())
    for size in ((1, 2, 3), "ab", 2.5, True):
        with pytest.raises(TypeError, match="size must be an int or two"):
            summary(model, size)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        summary(model, 0)
    with pytest.raises(ValueError, match="in_channels must be given"):
        summary(model, 4)
    assert summary(model, 4, in_channels=2).receptive_field == (1, 1)
