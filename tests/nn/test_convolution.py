"""DilatedConv2d against torch.nn.Conv2d, ConvNormAct against the three layers it stands for."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import segops

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 1), "stride": (2, 1), "bias": False},
    {"kernel_size": 3, "padding": "same", "groups": 3, "dilation": (1, 3)},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_is_that_of_torch(options: dict[str, Any]) -> None:
    ours, theirs = segops.nn.DilatedConv2d(6, 9, **options), nn.Conv2d(6, 9, **options)
    assert repr(ours) == repr(theirs).replace("Conv2d", "DilatedConv2d")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 11, 13)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours(x[0]), theirs(x[0]), atol=1e-5)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x), ours(x))


def trio(layer: segops.nn.ConvNormAct) -> nn.Sequential:
    conv = layer.conv
    options = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    activations = {
        None: nn.Identity,
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "silu": nn.SiLU,
        "sigmoid": nn.Sigmoid,
    }
    norm = nn.BatchNorm2d(conv.out_channels, layer.norm.eps, layer.norm.momentum)
    plain = nn.Sequential(
        nn.Conv2d(conv.in_channels, conv.out_channels, *options, bias=conv.bias is not None),
        norm,
        activations[layer.activation](),
    )
    plain[0].load_state_dict(layer.conv.state_dict())
    plain[1].load_state_dict(layer.norm.state_dict())
    return plain


@pytest.mark.parametrize("activation", segops.nn.ConvNormAct.ACTIVATIONS)
def test_it_trains_like_the_trio(activation: str | None) -> None:
    """20 steps of float64, and of float32 through Winograd's algorithm, which starts at 32 channels or so."""
    for dtype, channels, tolerance in ((torch.float64, 5, 1e-9), (torch.float32, 48, 2e-3)):
        options: dict[str, Any] = {"padding": 2, "dilation": 2, "activation": activation, "bias": activation == "silu"}
        layer = segops.nn.ConvNormAct(channels, channels, 3, **options).to(dtype)
        plain = trio(layer)
        plain.to(dtype)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (layer, plain)]
        for step in range(20):
            x = torch.randn(2, channels, 41, 37, dtype=dtype, generator=torch.Generator().manual_seed(step))
            losses = []
            for model, optimizer in zip((layer, plain), optimizers, strict=True):
                optimizer.zero_grad()
                loss = (model(x) - x).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert losses[0] == pytest.approx(losses[1], rel=tolerance)
        for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(layer.buffers(), plain.buffers(), strict=True):
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        layer.eval()
        plain.eval()
        assert torch.allclose(layer(x), plain(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("residual", [False, True])
def test_eval_mode_is_one_kernel(residual: bool) -> None:
    layer = segops.nn.ConvNormAct(4, 8, 3, padding="same").eval()
    inputs = (torch.randn(1, 4, 8, 8), torch.randn(1, 8, 8, 8))
    with torch.no_grad():
        program = torch.export.export(layer, inputs if residual else inputs[:1])
    nodes = [
        node for node in program.graph.nodes if node.op == "call_function" and getattr(node.meta["val"], "ndim", 0) == 4
    ]
    assert [str(node.target) for node in nodes] == ["segops.dilated_conv2d.default"]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_residual_is_added_before_the_activation(activation: str | None) -> None:
    layer = segops.nn.ConvNormAct(4, 6, 3, stride=2, padding=1, activation=activation).double()
    plain = trio(layer).double()
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    residuals = [torch.randn(2, 6, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    residuals[1].data.copy_(residuals[0].data)
    for training in (True, False):
        ours = layer.train(training)(x, residuals[0])
        theirs = plain.train(training)[2](plain[1](plain[0](x)) + residuals[1])
        torch.testing.assert_close(ours, theirs)
        gradients = [
            torch.autograd.grad(y.square().sum(), r)[0] for y, r in zip((ours, theirs), residuals, strict=True)
        ]
        torch.testing.assert_close(*gradients)


def test_eval_mode_follows_a_changed_weight() -> None:
    """Nothing is kept of weights or statistics between calls."""
    layer = segops.nn.ConvNormAct(48, 48, 3, padding=1).eval()
    x = torch.randn(1, 48, 40, 40)
    with torch.no_grad():
        layer(x)
        layer.conv.weight.data.mul_(-2)
        layer.norm.running_var.mul_(3)
        assert torch.allclose(layer(x), trio(layer).eval()(x), atol=1e-5)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="activation must be one of"):
        segops.nn.ConvNormAct(1, 1, 3, activation="gelu")
    with pytest.raises(ValueError, match="precision must be one of"):
        segops.nn.DilatedConv2d(1, 1, 3, precision="exact")
