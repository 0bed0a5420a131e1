"""Training that keeps one image a layer: how much is kept, and that nothing else differs from torch.nn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from segops.nn import (
    Cat,
    ConvNormAct,
    ConvTranspose2d,
    DilatedConv2d,
    DynamicWeightDecay,
    MaxPool2d,
    MaxUnpool2d,
    UpsampleCat,
)
from segops.recompute import is_remembered, kept

Layer = Callable[..., nn.Module]


def trio(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


def lean(i: int, o: int) -> nn.Module:
    return ConvNormAct(i, o, 3, padding=1, bias=True)


class SegNetLike(nn.Module):
    """Two stages down and up, with unpooling."""

    def __init__(self, block: Layer, pool: Layer, unpool: Layer, conv: Layer, width: int) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([nn.Sequential(block(3, w), block(w, w)), nn.Sequential(block(w, w), block(w, w))])
        self.up = nn.ModuleList([nn.Sequential(block(w, w), block(w, w)), nn.Sequential(block(w, w))])
        self.pool, self.unpool, self.last = pool(2, return_indices=True), unpool(2), conv(w, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        places = []
        for stage in self.down:
            x = stage(x)
            size = x.shape
            x, indices = self.pool(x)
            places.append((indices, size))
        for stage in self.up:
            indices, size = places.pop()
            x = stage(self.unpool(x, indices, output_size=size))
        return self.last(x)


class UNetLike(nn.Module):
    """Two levels, the upper met by a transposed convolution and then again by interpolation."""

    def __init__(
        self, block: Layer, pool: Layer, up: Layer, cat: nn.Module, upsample_cat: nn.Module, conv: Layer, width: int
    ) -> None:
        super().__init__()
        w = width
        self.first = nn.Sequential(block(3, w), block(w, w))
        self.second = nn.Sequential(block(w, 2 * w), block(2 * w, 2 * w))
        self.third, self.fourth = block(2 * w, 2 * w), block(3 * w, w)
        self.up, self.join = up(2 * w, w, 2, 2), block(2 * w, w)
        self.pool, self.cat, self.upsample_cat, self.last = pool(2), cat, upsample_cat, conv(w, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        x = self.second(self.pool(skip))
        y = self.join(self.cat([skip, self.up(x, output_size=skip.shape[2:])]))
        x = self.fourth(self.upsample_cat(self.third(x), y))
        return self.last(x)


class TorchCat(nn.Module):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)


class TorchUpsampleCat(nn.Module):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="bilinear")], 1)


def pair(kind: str, width: int = 4) -> tuple[nn.Module, nn.Module]:
    """The network on segops.nn and on torch.nn, with the same weights."""
    torch.manual_seed(1)
    if kind == "segnet":
        ours: nn.Module = SegNetLike(lean, MaxPool2d, MaxUnpool2d, DilatedConv2d, width)
        theirs: nn.Module = SegNetLike(trio, nn.MaxPool2d, nn.MaxUnpool2d, nn.Conv2d, width)
    else:
        ours = UNetLike(lean, MaxPool2d, ConvTranspose2d, Cat(), UpsampleCat(), DilatedConv2d, width)
        parts = (TorchCat(), TorchUpsampleCat())
        theirs = UNetLike(trio, nn.MaxPool2d, nn.ConvTranspose2d, *parts, nn.Conv2d, width)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    return ours, theirs


def bytes_kept(call: Callable[[], Tensor], model: nn.Module) -> int:
    """Of the storages that autograd keeps of a forward pass, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(sizes.values())


#: The outputs of all convolutions but the first, which reads three channels; then the pooled images that convolutions
#: read, and the indices.
IMAGES = {"segnet": 3 + (1 / 4 + 1 / 16) + (1 / 16 + 1 / 64), "unet": 4.5 + 1 / 4 + 1 / 16}


@pytest.mark.parametrize("kind", IMAGES)
def test_it_keeps_one_image_a_layer(kind: str) -> None:
    """In images of `width` channels and full size: so much, the input, and vectors of the norms."""
    ours, theirs = pair(kind, width=8)
    x = torch.rand(2, 3, 32, 48)
    image = 4 * 2 * 8 * 32 * 48
    found = bytes_kept(lambda: ours(x), ours)
    vectors = found - x.nbytes - IMAGES[kind] * image
    assert 0 < vectors < 4096
    assert found < 0.56 * bytes_kept(lambda: theirs(x), theirs)


@pytest.mark.parametrize("kind", ["segnet", "unet"])
@pytest.mark.parametrize("size", [(16, 12), (13, 11)])
def test_it_trains_like_torch(kind: str, size: tuple[int, int]) -> None:
    """20 steps in float64, odd sizes included: losses, parameters and running statistics."""
    networks = [m.double() for m in pair(kind)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in networks]
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
        losses = []
        for model, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            loss = (model(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    states = [m.state_dict().values() for m in networks]
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert int(next(v for k, v in networks[0].state_dict().items() if k.endswith("num_batches_tracked"))) == 20


@pytest.mark.parametrize("kind", ["segnet", "unet"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_single_and_half_precision(kind: str, autocast: bool, channels_last: bool) -> None:
    """Gradients as near to those of float64 as torch's own."""
    ours, theirs = pair(kind)
    x = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(2))
    truth = copy.deepcopy(theirs).double()
    truth(x.double()).square().mean().backward()
    if channels_last:
        x, ours, theirs = (t.to(memory_format=torch.channels_last) for t in (x, ours, theirs))
    for model in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            output = model(x)
        output.float().square().mean().backward()
    wanted = torch.cat([p.grad.flatten() for p in truth.parameters()])
    off = [
        (torch.cat([p.grad.flatten() for p in m.parameters()]).double() - wanted).norm().item() for m in (ours, theirs)
    ]
    assert off[0] <= 2 * off[1] + 1e-6 * wanted.norm().item()


def test_what_is_remembered() -> None:
    layer, after = ConvNormAct(2, 3, 3, padding=1), DilatedConv2d(3, 2, 3)
    x = torch.randn(2, 2, 7, 5)
    y = layer(x)
    assert is_remembered(y)
    rebuild, parts = kept(y)
    torch.testing.assert_close(rebuild(*parts), y)
    assert not any(part.requires_grad for part in parts)
    y.add_(1.0)  # no longer what was remembered
    assert not is_remembered(y)
    after(y).square().sum().backward()
    expected = torch.nn.grad.conv2d_weight(y.detach(), after.weight.shape, 2 * after(y.detach()).detach())
    torch.testing.assert_close(after.weight.grad, expected)
    with torch.no_grad():
        assert not is_remembered(layer(x))
    assert not is_remembered(layer.requires_grad_(False)(x))


def test_a_cheap_convolution_is_computed_again() -> None:
    """The rebuilt one is that of forward to the last bit, under autocast it is kept."""
    layer = ConvNormAct(3, 5, 3, padding=1, bias=True)
    x = torch.randn(2, 3, 9, 14)
    convolved = layer._remembered(layer.conv(x), x)
    rebuild, parts = kept(convolved)
    assert parts[0].data_ptr() == x.data_ptr()
    assert torch.equal(rebuild(*parts), convolved)
    wide = ConvNormAct(4, 5, 3)
    assert not is_remembered(wide._remembered(wide.conv(torch.randn(2, 4, 9, 14)), x))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_remembered(layer._remembered(layer.conv(x), x))
    y = ConvNormAct(5, 4, 1)(layer(x))
    assert kept(y).parts[0].shape == (2, 4, 9, 14)  # what the second convolution gave, and not the image


def test_a_concatenation_s_gradients_share_no_memory() -> None:
    parts = [torch.randn(2, c, 3, 4, dtype=torch.float64, requires_grad=c != 2) for c in (1, 2, 3)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        joined = Cat()(parts)
        upstream = torch.randn_like(joined).contiguous(memory_format=memory_format)
        first, last = torch.autograd.grad(joined, [parts[0], parts[2]], upstream)
        assert torch.equal(torch.cat([first, last], 1), upstream[:, [0, 3, 4, 5]])
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in (first, last))
        assert last.is_contiguous(memory_format=memory_format)
    assert torch.autograd.gradgradcheck(lambda *t: Cat()([t[0].sin(), t[1]]), (parts[0], parts[2]))


def test_backward_twice_and_double_backward() -> None:
    layers = nn.Sequential(ConvNormAct(2, 3, 3), ConvNormAct(3, 2, 3, activation="silu")).double()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    loss = layers(x).square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        gradient.sum().backward()
    (gradient,) = torch.autograd.grad(layers(x).square().sum(), layers[1].norm.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_changed_weights_are_noticed() -> None:
    layers = nn.Sequential(ConvNormAct(2, 3, 3), ConvNormAct(3, 2, 3))
    loss = layers(torch.randn(2, 2, 9, 8)).sum()
    with torch.no_grad():
        layers[0].norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cumulative_statistics() -> None:
    layer = ConvNormAct(2, 3, 3, momentum=None)
    plain = nn.BatchNorm2d(3, momentum=None)
    for seed in range(3):
        x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
        layer(x)
        plain(layer.conv(x))
    for ours, theirs in zip(layer.norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_watched_norm_runs_itself() -> None:
    layer = ConvNormAct(2, 3, 3)
    decay = DynamicWeightDecay([layer.norm])
    y = layer(torch.randn(2, 2, 6, 6))
    assert not is_remembered(y)
    assert decay().requires_grad
    decay.remove()
    assert is_remembered(layer(torch.randn(2, 2, 6, 6)))
    layer.norm = nn.SyncBatchNorm(3)
    assert not is_remembered(layer(torch.randn(2, 2, 6, 6)))


@pytest.mark.parametrize("kind", ["segnet", "unet"])
def test_checkpoints_and_graphs(kind: str) -> None:
    ours, _ = pair(kind)
    x = torch.rand(2, 3, 8, 12)

    def gradients(function: Callable[..., Tensor]) -> list[Any]:
        ours.zero_grad()
        function(x).square().mean().backward()
        return [p.grad for p in ours.parameters()]

    expected = gradients(ours)
    torch.testing.assert_close(gradients(lambda x: checkpoint(ours, x, use_reentrant=False)), expected)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled), expected, rtol=1e-4, atol=1e-6)


def test_transposed_convolution_is_that_of_torch() -> None:
    ours = ConvTranspose2d(3, 4, 3, stride=2, padding=1, groups=1)
    theirs = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    before = ConvNormAct(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 5, 6)
    for output_size in (None, [10, 12]):
        for given in (before(x), x.new_ones(2, 3, 5, 6), x.new_ones(3, 5, 6)):
            torch.testing.assert_close(ours(given, output_size), theirs(given, output_size))


def test_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match=r"more than one value per channel, got \[1, 3, 1, 1\]"):
        ConvNormAct(2, 3, 3)(torch.randn(1, 2, 3, 3))
