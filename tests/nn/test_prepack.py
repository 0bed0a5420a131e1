"""Weights kept packed for inference: the same bits, and never those of a weight that has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import segops
from segops import _library
from segops.nn import ConvNormAct, DilatedConv2d
from segops.ops.dilated_conv import prepack
from tests.cases import make_logits

pytestmark = pytest.mark.skipif(
    _library.native is None or _library.native.cpu_isa() == "baseline", reason="the rule keeps ATen's convolution"
)


def layer(channels: int = 64, **options: Any) -> DilatedConv2d:
    torch.manual_seed(0)
    return DilatedConv2d(channels, 80, 3, padding=2, dilation=2, **options).eval()


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return make_logits((1, 64, 67, 61), dtype, scale=1.0)


class Calls(TorchDispatchMode):
    """Counts those that a kept weight answers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.segops.dilated_conv2d_prepacked.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["default", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_bits(dtype: torch.dtype, precision: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        ConvNormAct(64, 80, 3, padding=4, dilation=4, precision=precision), layer(80, precision=precision)
    )
    model = model.to(dtype).eval()
    x = image(dtype)
    with torch.no_grad():
        expected = model(x)
        assert segops.nn.prepack(model) is model
        with Calls() as calls:
            assert torch.equal(model(x), expected)
        assert calls.count == 2
        assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    with Calls() as calls:
        model(x).float().sum().backward()
    assert not calls.count
    assert model[0].conv.weight.grad is not None


def test_smaller_images_gain_by_it() -> None:
    """The rule counts no packing for a weight that is kept: with every instruction set, ATen is chosen without."""
    weight, x = make_logits((256, 256, 3, 3), scale=0.02), make_logits((1, 256, 3, 3), scale=1.0)
    plain = segops.dilated_conv2d(x, weight, None, 1, 1)
    packed = segops.dilated_conv2d(x, weight, None, 1, 1, prepacked=prepack(weight))
    assert torch.equal(plain, torch.nn.functional.conv2d(x, weight, None, 1, 1))
    assert not torch.equal(plain, packed)
    assert torch.allclose(plain, packed, atol=1e-5)


def step(module: DilatedConv2d) -> None:
    module(image()).square().mean().backward()
    torch.optim.SGD(module.parameters(), 1.0).step()


CHANGES: dict[str, Callable[[DilatedConv2d], object]] = {
    "in place": lambda m: m.weight.detach()[79, 63, 2, 2].add_(1e-3),
    "first element, through .data": lambda m: m.weight.data[0, 0, 0, 0].neg_(),
    "a sign of zero, through .data": lambda m: m.weight.data.view(-1)[4711:4712].fill_(-0.0),
    "other data": lambda m: setattr(m.weight, "data", torch.zeros_like(m.weight)),
    "an optimizer": step,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weight_is_an_error(change: str) -> None:
    module, x = layer(), image()
    module.weight.data.view(-1)[4711] = 0.0
    assert module.prepack()
    CHANGES[change](module)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"segops.dilated_conv2d: the weight has changed since"):
        module(x)
    assert module.prepack()
    with torch.no_grad():
        fresh = segops.dilated_conv2d(x, module.weight, module.bias, 1, 2, 2)
        assert torch.equal(module(x), fresh)


def test_left_behind() -> None:
    """By a copy, other weights, a state, a move, autocast and another precision."""
    module, x = layer(precision="fast"), image()
    with torch.no_grad(), Calls() as calls:
        expected = module(x)
        assert module.prepack()
        copied = copy.deepcopy(module)
        copied.weight.data.mul_(2)
        copied.bias.data.mul_(2)
        assert torch.equal(copied(x), expected * 2)
        assert torch.equal(module.convolve(x, module.weight * 2, module.bias * 2), expected * 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(module(x).float(), expected, atol=0.05)
        module.load_state_dict(copied.state_dict())
        assert torch.equal(module(x), expected * 2)
        module.prepack()
        assert torch.allclose(module.double()(x.double()).float(), expected * 2, atol=1e-4)
        module.float().prepack()
        segops.nn.set_precision(module, "default")  # F(4x4) would be too inexact
        plain = segops.dilated_conv2d(x, module.weight, module.bias, 1, 2, 2)
        assert not calls.count
        assert torch.equal(module(x), plain)


def test_refused() -> None:
    weight, x = torch.zeros(64, 64, 3, 3), image()
    with pytest.raises(RuntimeError, match="prepacked does not belong to a weight"):
        segops.dilated_conv2d(x, weight[:48].contiguous(), prepacked=prepack(weight))
    damaged = prepack(weight)
    assert damaged is not None
    damaged[-15] += 1  # the width of its panels
    with pytest.raises(RuntimeError, match="for another processor"):
        segops.dilated_conv2d(x, weight, prepacked=damaged)
    with pytest.raises(ValueError, match="precision must be one of"):
        prepack(weight, "low")
    assert prepack(weight.double()) is None
    assert prepack(torch.zeros(4, 4, 1, 1)) is None
    with pytest.raises(ValueError, match=r"segops\.nn\.prepack: the model has no 3x3 convolutions"):
        segops.nn.prepack(nn.Sequential(DilatedConv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3)))
