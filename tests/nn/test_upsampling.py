"""The upsampling layers against torch.nn's of the same name: arguments, representation, state, results."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segops
from tests.cases import make_logits

NAMES = ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")

#: Arguments of Upsample, and the shape of an input.
OPTIONS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"scale_factor": 2}, (2, 3, 4, 5)),
    ({"scale_factor": (2.3, 1.5)}, (2, 3, 4, 5)),
    ({"size": 7}, (2, 3, 4, 5)),
    ({"size": (9, 5)}, (2, 3, 4, 5)),
    ({"scale_factor": 2.3, "recompute_scale_factor": True}, (2, 3, 7, 9)),
    ({"scale_factor": (2.3, 1.3), "recompute_scale_factor": True}, (2, 3, 7, 9)),
    ({"scale_factor": 2.3, "recompute_scale_factor": False}, (2, 3, 7, 9)),
    ({"scale_factor": 2}, (2, 3, 4)),
    ({"scale_factor": 2}, (2, 3, 4, 5, 6)),
    ({"scale_factor": 2, "mode": "bilinear"}, (2, 3, 4, 5)),
    ({"scale_factor": 2, "mode": "bilinear", "align_corners": True}, (2, 3, 4, 5)),
    ({"size": (9, 5), "mode": "bilinear"}, (2, 3, 4, 5)),
    ({"scale_factor": (2.3, 1.5), "mode": "bilinear"}, (2, 3, 4, 5)),
    ({"scale_factor": 2.3, "mode": "bilinear", "recompute_scale_factor": True}, (2, 3, 7, 9)),
    ({"scale_factor": 2, "mode": "nearest-exact"}, (2, 3, 4, 5)),
    ({"size": (7, 8), "mode": "bicubic", "align_corners": False}, (2, 3, 4, 5)),
    ({"scale_factor": 2, "mode": "linear"}, (2, 3, 4)),
    ({"scale_factor": 2, "mode": "trilinear"}, (2, 3, 4, 5, 6)),
]


class Calls:
    """How often our operators ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("upsample_nearest2d", "upsample_bilinear2d"):
            monkeypatch.setattr(segops.nn.upsampling, name, self.counted(getattr(segops, name)))

    def counted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            self.count += 1
            return function(*args)

        return call


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_torch(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (segops.nn, nn))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize(("options", "shape"), OPTIONS, ids=str)
def test_upsample_is_that_of_torch(
    options: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    ours, theirs = segops.nn.Upsample(**options), nn.Upsample(**options)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict() == theirs.state_dict() == {}
    x = make_logits(shape)
    bilinear = options.get("mode") == "bilinear"  # equal but for rounding
    for input in (x, x.double()):
        a, b = input.clone().requires_grad_(), input.clone().requires_grad_()
        value, expected = ours(a), theirs(b)
        assert torch.allclose(value, expected, atol=1e-6) if bilinear else torch.equal(value, expected)
        value.square().sum().backward()
        expected.square().sum().backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-5)
    assert calls.count == (2 if len(shape) == 4 and options.get("mode", "nearest") in ("nearest", "bilinear") else 0)


def test_integers_fall_through() -> None:
    x = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    assert torch.equal(segops.nn.Upsample(scale_factor=2)(x), nn.Upsample(scale_factor=2)(x))


@pytest.mark.parametrize("options", [{"size": (6, 7)}, {"scale_factor": 3}, {"scale_factor": (1.5, 2.0)}], ids=str)
def test_nearest_layer(options: dict[str, Any]) -> None:
    ours, theirs = segops.nn.UpsamplingNearest2d(**options), nn.UpsamplingNearest2d(**options)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.Upsample)
    x = make_logits((2, 3, 4, 5), torch.bfloat16, "channels_last")
    assert torch.equal(ours(x), theirs(x))
    assert ours(x).stride() == theirs(x).stride()
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x), theirs(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 4, "scale_factor": 2},
        {"size": 4, "recompute_scale_factor": True},
        {"scale_factor": 2, "align_corners": True},
        {"size": (1, 2, 3)},
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(options: dict[str, Any]) -> None:
    x = make_logits((1, 2, 3, 4))
    for module in (segops.nn, nn):
        with pytest.raises(ValueError):
            module.Upsample(**options)(x)


@pytest.mark.parametrize(
    "options", [{"scale_factor": 2}, {"scale_factor": 1.5, "recompute_scale_factor": True}], ids=str
)
def test_compiles_in_one_graph_for_all_sizes(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    layer = segops.nn.Upsample(**options)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for h, w in ((4, 5), (6, 9)):
        x = make_logits((2, 3, h, w))
        assert torch.equal(compiled(x), layer(x))


def test_bed_of_nails() -> None:
    layer = segops.nn.BedOfNails2d(3)
    assert repr(layer) == "BedOfNails2d(scale=3)"
    assert layer.state_dict() == {}
    x = make_logits((1, 2, 3, 4))
    assert torch.equal(layer(x), segops.bed_of_nails2d(x, 3))


@pytest.mark.parametrize("options", [{"size": (6, 7)}, {"scale_factor": 3}, {"scale_factor": (1.5, 2.0)}], ids=str)
def test_bilinear_layer(options: dict[str, Any]) -> None:
    ours, theirs = segops.nn.UpsamplingBilinear2d(**options), nn.UpsamplingBilinear2d(**options)
    assert repr(ours) == repr(theirs)
    x = make_logits((2, 3, 4, 5), layout="channels_last")
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert ours(x).stride() == theirs(x).stride()


def test_upsample_cat() -> None:
    layer = segops.nn.UpsampleCat(align_corners=True, order="up_first")
    assert repr(layer) == "UpsampleCat(align_corners=True, order='up_first')"
    assert layer.state_dict() == {}
    x, skip = make_logits((1, 2, 3, 4)), make_logits((1, 3, 7, 9))
    assert torch.equal(layer(x, skip), segops.upsample_cat(x, skip, True, "up_first"))
    assert torch.equal(segops.nn.UpsampleCat()(x, skip), segops.upsample_cat(x, skip))
