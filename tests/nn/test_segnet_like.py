"""A SegNet-like stack (five poolings, five unpoolings): it trains, and its gradients are those of torch.nn's layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segops

CHANNELS = (2, 2, 3, 3, 4, 4)


class SegNetLike(nn.Module):
    def __init__(self, layers: Any, ceil_mode: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(CHANNELS))
        self.down = nn.ModuleList(nn.Conv2d(c, d, 3, padding=1) for c, d in pairs)
        self.up = nn.ModuleList(nn.Conv2d(d, c, 3, padding=1) for c, d in reversed(pairs))
        self.pool = layers.MaxPool2d(2, 2, return_indices=True, ceil_mode=ceil_mode)
        self.unpool = layers.MaxUnpool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for convolution in self.down:
            x = convolution(x).relu()
            kept.append(x.shape[-2:])
            x, indices = self.pool(x)
            kept.append(indices)
        for convolution in self.up:
            indices, size = kept.pop(), kept.pop()
            x = convolution(self.unpool(x, indices, output_size=size))
        return x


def _stack(layers: Any, ceil_mode: bool, device: str) -> SegNetLike:
    torch.manual_seed(0)
    return SegNetLike(layers, ceil_mode).to(device, torch.float64)


def _image(device: str) -> Tensor:
    return torch.randn(1, 2, 37, 41, dtype=torch.float64).to(device)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_gradients_are_those_of_torch(backend: str, device: str, ceil_mode: bool) -> None:
    ours, theirs = _stack(segops.nn, ceil_mode, device), _stack(nn, ceil_mode, device)
    x = _image(device)
    with segops.backends.use(backend):
        output = ours(x)
        output.square().sum().backward()
    expected = theirs(x)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_it_trains(backend: str, device: str) -> None:
    model, x = _stack(segops.nn, True, device), _image(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    with segops.backends.use(backend):
        for _ in range(2 if backend == "triton" else 15):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < (0.99 if len(losses) > 2 else 1) * losses[0]


def test_compiled_it_is_the_same() -> None:
    torch._dynamo.reset()
    eager, model, x = _stack(segops.nn, True, "cpu"), _stack(segops.nn, True, "cpu"), _image("cpu")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    eager(x).square().sum().backward()
    compiled(x).square().sum().backward()
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
