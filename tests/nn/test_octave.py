"""OctConv2d and GOctConv2d against their definitions, written with torch.nn.functional."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segops


def total(parts: list[Tensor | None]) -> Tensor | None:
    present = [p for p in parts if p is not None]
    return sum(present[1:], present[0]) if present else None


def octave(layer: segops.nn.OctConv2d, high: Tensor | None, low: Tensor | None) -> list[Tensor | None]:
    def conv(name: str, x: Tensor | None) -> Tensor | None:
        own = getattr(layer, f"conv_{name}")
        if own is None or x is None:
            return None
        return F.conv2d(x, own.weight, own.bias, 1, own.padding, own.dilation, own.groups)

    def pool(x: Tensor | None) -> Tensor | None:
        return None if x is None else F.avg_pool2d(x, 2)

    if layer.stride == 2:
        high, unpooled, low = pool(high), low, pool(low)
        from_low = conv("l2h", unpooled)
    else:
        from_low = conv("l2h", low)
        from_low = None if from_low is None else F.interpolate(from_low, scale_factor=2, mode="nearest")
    return [total([conv("h2h", high), from_low]), total([conv("l2l", low), conv("h2l", pool(high))])]


CASES: list[dict[str, Any]] = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2, "alpha_in": 0.25, "alpha_out": 0.7, "bias": True},
    {"padding": 1, "alpha_in": 0.0, "bias": True},
    {"padding": 1, "alpha_out": 0.0, "stride": 2, "bias": True},
    {"padding": 1, "alpha_in": 0.0, "alpha_out": 0.0, "stride": 2},
    {"padding": 1, "alpha_in": 1.0, "alpha_out": 0.5, "bias": True},
    {"padding": 1, "alpha_in": 0.5, "alpha_out": 1.0},
    {"padding": 1, "groups": 2},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_octave_convolution(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = segops.nn.OctConv2d(8, 12, 3, **options).to(dtype)
    high = torch.rand(2, layer.high_in, 20, 28, dtype=dtype, requires_grad=True) if layer.high_in else None
    low = torch.rand(2, layer.low_in, 10, 14, dtype=dtype, requires_grad=True) if layer.low_in else None
    dense = nn.Conv2d(8, 12, 3, groups=options.get("groups", 1), bias=options.get("bias", False))
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in dense.parameters())
    output = layer((high, low))
    outputs = [output, None] if isinstance(output, Tensor) else list(output)
    leaves = [t for t in (high, low, *layer.parameters()) if t is not None]
    gradients = []
    for result in (outputs, octave(layer, high, low)):
        sum(r.square().sum() for r in result if r is not None).backward()
        gradients.append([leaf.grad.clone() for leaf in leaves])
        for leaf in leaves:
            leaf.grad = None
    for ours, theirs in zip(outputs, octave(layer, high, low), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3 if dtype == torch.float32 else 1e-9)


def test_a_tensor_has_no_low_frequencies() -> None:
    layer = segops.nn.OctConv2d(3, 6, 3, padding=1, alpha_in=0)
    x = torch.rand(1, 3, 8, 8)
    for ours, theirs in zip(layer(x), layer((x, None)), strict=True):
        assert torch.equal(ours, theirs)
    assert sorted(layer.state_dict()) == ["conv_h2h.weight", "conv_h2l.weight"]


def test_depthwise_has_no_paths_between_frequencies() -> None:
    layer = segops.nn.OctConv2d(8, 8, 3, padding=1, groups=8, alpha_in=0.25, alpha_out=0.25)
    assert {k: v.shape[0] for k, v in layer.state_dict().items()} == {"conv_h2h.weight": 6, "conv_l2l.weight": 2}
    pair = torch.rand(1, 6, 8, 8), torch.rand(1, 2, 4, 4)
    for ours, x, conv in zip(layer(pair), pair, (layer.conv_h2h, layer.conv_l2l), strict=True):
        torch.testing.assert_close(ours, F.conv2d(x, conv.weight, padding=1, groups=x.shape[1]))


def test_octave_convolution_refuses() -> None:
    for options, message in (
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"alpha_in": 1.5}, "alpha_in must be from 0 to 1, got 1.5"),
        ({"groups": 8, "alpha_in": 0.0}, r"keep its channels, got 8 \+ 0 and 4 \+ 4"),
    ):
        with pytest.raises(ValueError, match=message):
            segops.nn.OctConv2d(8, 8, 3, **options)
    layer = segops.nn.OctConv2d(8, 8, 3, padding=1)
    with pytest.raises(ValueError, match="low must have 4 channels, got 0"):
        layer((torch.rand(1, 4, 8, 8), None))
    with pytest.raises(ValueError, match=r"branch 0 must be 2 times as large as branch 1, got \[8, 9\] and \[4, 4\]"):
        layer((torch.rand(1, 4, 8, 9), torch.rand(1, 4, 4, 4)))
    with pytest.raises(ValueError, match="multiples of 2, got 7 x 8"):
        segops.nn.OctConv2d(8, 8, 3, padding=1, alpha_in=0)(torch.rand(1, 8, 7, 8))


def generalised(layer: segops.nn.GOctConv2d, images: list[Tensor | None]) -> list[Tensor | None]:
    if layer.stride == 2:
        images = [None if x is None else F.avg_pool2d(x, 2) for x in images]
    results: list[Tensor | None] = []
    row = 0
    for j, outputs in enumerate(layer.out_channels):
        column, arriving = 0, []
        for i, inputs in enumerate(layer.in_channels):
            x, weight = images[i], layer.weight[row : row + outputs, column : column + inputs]
            column += inputs
            if x is None or not outputs:
                continue
            if i < j:
                x = F.max_pool2d(x, 2 ** (j - i))
            x = F.conv2d(x, weight, padding=layer.padding)
            arriving.append(F.interpolate(x, scale_factor=2 ** (i - j), mode="bilinear") if i > j else x)
        row += outputs
        results.append(total(arriving))
    return results


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    ("inputs", "outputs", "stride"),
    [([3, 2, 4], [2, 5, 1], 1), ([3, 2], [4, 2], 2), ([3, 0, 4], [0, 2, 3], 1), ([5], [3, 2], 1), ([2, 3], [4], 1)],
)
def test_generalised_octave_convolution(inputs: list[int], outputs: list[int], stride: int, kernel_size: int) -> None:
    layer = segops.nn.GOctConv2d(inputs, outputs, kernel_size, stride, kernel_size // 2).double()
    assert layer.weight.shape == (sum(outputs), sum(inputs), kernel_size, kernel_size)
    images = [
        torch.rand(2, c, 24 >> i, 40 >> i, dtype=torch.float64, requires_grad=True) if c else None
        for i, c in enumerate(inputs)
    ]
    leaves = [layer.weight, *(x for x in images if x is not None)]
    found = []
    for result in (layer(images), generalised(layer, images)):
        gradients = torch.autograd.grad(sum(r.square().sum() for r in result if r is not None), leaves)
        found.append((result, gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert [x is None for x in ours] == [not c for c in outputs]
    torch.testing.assert_close([x for x in ours if x is not None], [x for x in theirs if x is not None])
    torch.testing.assert_close(our_gradients, their_gradients)


def test_generalised_octave_convolution_refuses() -> None:
    with pytest.raises(ValueError, match="stride must be 1 or 2, got 4"):
        segops.nn.GOctConv2d([1], [1], 3, 4)
    layer = segops.nn.GOctConv2d([1, 2], [1, 2], 1)
    with pytest.raises(ValueError, match=r"must have \[1, 2\] channels, got \[1, 1\]"):
        layer([torch.rand(1, 1, 8, 8), torch.rand(1, 1, 4, 4)])
    with pytest.raises(ValueError, match=r"branch 0 must be 2 times as large as branch 1, got \[8, 8\] and \[8, 8\]"):
        layer([torch.rand(1, 1, 8, 8), torch.rand(1, 2, 8, 8)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype: torch.dtype) -> None:
    pair = [torch.rand(1, 4, 8, 8), torch.rand(1, 4, 4, 4)]
    for layer in (segops.nn.OctConv2d(8, 8, 3, padding=1), segops.nn.GOctConv2d([4, 4], [4, 4], 3, padding=1)):
        wide = layer(pair)
        for ours, exact in zip(layer.to(dtype)([x.to(dtype) for x in pair]), wide, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.float(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_graphs() -> None:
    pair = torch.rand(1, 4, 8, 8), torch.rand(1, 4, 4, 4)
    for layer in (segops.nn.OctConv2d(8, 8, 3, padding=1), segops.nn.GOctConv2d([4, 4], [4, 4], 3, padding=1)):
        with torch.no_grad():
            expected = layer(pair)
            torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(pair), expected)
            torch.testing.assert_close(torch.export.export(layer, (pair,)).module()(pair), expected)
