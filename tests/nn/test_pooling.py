"""The pooling layers against torch.nn's of the same name: arguments, representation, state, results."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import segops
from tests.cases import make_logits

#: Arguments of MaxPool2d.
OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": (2, 3), "stride": (3, 2)},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 2, "ceil_mode": True},
]


def test_arguments_are_those_of_torch() -> None:
    for name, more in (("MaxPool2d", []), ("MaxUnpool2d", [("dilation", 1)])):
        ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (segops.nn, nn))
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()] + more


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pooling_is_that_of_torch(options: dict[str, Any], layout: str) -> None:
    ours, theirs = segops.nn.MaxPool2d(**options), nn.MaxPool2d(**options)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict() == theirs.state_dict() == {}
    x = make_logits((2, 3, 7, 9), layout=layout)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, expected = ours(a), theirs(b)
    assert torch.equal(value, expected)
    assert value.stride() == expected.stride()
    value.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-6)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x), expected)
    assert torch.equal(ours(x[0]), theirs(x[0]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unpooling_takes_both_kinds_of_index(options: dict[str, Any]) -> None:
    x = make_logits((2, 3, 7, 9))
    pooled, local = segops.nn.MaxPool2d(**options, return_indices=True)(x)
    expected, flat = nn.MaxPool2d(**options, return_indices=True)(x)
    assert local.dtype == torch.uint8
    assert torch.equal(pooled, expected)
    layer = segops.nn.MaxUnpool2d(*(options.get(name) for name in ("kernel_size", "stride")), options.get("padding", 0))
    if "dilation" not in options:
        assert repr(layer) == repr(nn.MaxUnpool2d(layer.kernel_size, layer.stride, layer.padding))
    assert layer.state_dict() == {}
    layer.dilation = options.get("dilation", 1)
    result = torch.zeros_like(x).flatten(2).scatter_(2, flat.flatten(2), expected.flatten(2)).view(x.shape)
    for indices in (local, flat):
        assert torch.equal(layer(pooled, indices, x.shape), result)
        assert torch.equal(layer(pooled, indices, output_size=(7, 9)), result)


def test_unpooling_without_output_size() -> None:
    x = make_logits((2, 3, 6, 8))
    pooled, local = segops.nn.MaxPool2d(2, return_indices=True)(x)
    expected, flat = nn.MaxPool2d(2, return_indices=True)(x)
    assert torch.equal(segops.nn.MaxUnpool2d(2)(pooled, local), nn.MaxUnpool2d(2)(expected, flat))


def test_dilation_shows() -> None:
    assert "dilation=(1, 2)" in repr(segops.nn.MaxUnpool2d(2, dilation=(1, 2)))


def test_large_windows_fall_through() -> None:
    x = make_logits((1, 2, 20, 20))
    assert torch.equal(segops.nn.MaxPool2d(17)(x), nn.MaxPool2d(17)(x))
    with pytest.raises(ValueError, match="256"):
        segops.nn.MaxPool2d(17, return_indices=True)(x)


def test_compiles_in_one_graph_for_all_sizes() -> None:
    torch._dynamo.reset()
    pool, unpool = segops.nn.MaxPool2d(2, return_indices=True, ceil_mode=True), segops.nn.MaxUnpool2d(2)

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        return unpool(*pool(x), x.shape)

    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend="aot_eager")
    for h, w in ((4, 5), (7, 9)):
        x = make_logits((2, 3, h, w))
        assert torch.equal(compiled(x), there_and_back(x))
