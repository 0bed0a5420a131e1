from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import segops
from segops.conversion import Conversion
from tests.models import checks


class SegNet(nn.Module):
    """By hand, with torch's int64 indices and a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 40, 3, padding=1), nn.Conv2d(40, 40, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.plain_pool = nn.MaxPool2d(3, 2, 1)
        self.unpool = nn.MaxUnpool2d(2)
        self.up = nn.UpsamplingBilinear2d(scale_factor=2)
        self.head = nn.Conv2d(40, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        pooled, indices = self.pool(x)
        middle = self.up(self.plain_pool(self.conv2(pooled).relu()))
        return self.head(self.unpool(middle, indices))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "fcn": functools.partial(
        torchvision.models.segmentation.fcn_resnet50, weights=None, weights_backbone=None, num_classes=4, aux_loss=True
    ),
    "deeplabv3": functools.partial(
        torchvision.models.segmentation.deeplabv3_resnet50,
        weights=None,
        weights_backbone=None,
        num_classes=4,
        aux_loss=True,
    ),
    "lraspp": functools.partial(
        torchvision.models.segmentation.lraspp_mobilenet_v3_large, weights=None, weights_backbone=None, num_classes=4
    ),
    "unet": functools.partial(smp.Unet, "resnet18", encoder_weights=None, classes=4),
    "deeplabv3+": functools.partial(smp.DeepLabV3Plus, "resnet18", encoder_weights=None, classes=4),
    "fpn": functools.partial(smp.FPN, "resnet18", encoder_weights=None, classes=4),
    "segnet": SegNet,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model.double()


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def tensor(output: Any) -> Tensor:
    return output["out"] if isinstance(output, dict) else output


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_keys_stay(name: str) -> None:
    model = made(name)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    converted = segops.convert(model)
    assert converted is not model
    assert list(converted.state_dict()) == list(model.state_dict())
    assert [n for n, _ in converted.named_modules()] == [n for n, _ in model.named_modules()]
    replaced = [line for line in converted.segops_report if line.after is not None]
    convolutions = [n for n, m in model.named_modules() if type(m) is nn.Conv2d]
    assert {line.name for line in replaced} >= set(convolutions)
    with torch.no_grad():
        expected = tensor(model.eval()(x))
        with Operators() as operators:
            torch.testing.assert_close(tensor(converted.eval()(x)), expected, rtol=1e-9, atol=1e-9)
    assert not {op for op in operators.seen if "batch_norm" in op or ("upsample" in op and "segops" not in op)}
    norms = {n for n, m in model.named_modules() if type(m) is nn.BatchNorm2d}
    assert {line.name for line in replaced if line.after.endswith("in eval mode without gradients")} >= norms
    for m in (model, converted):
        tensor(m.train()(x)).square().mean().backward()
    for (key, ours), theirs in zip(converted.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, key
            continue
        scale = float(theirs.grad.abs().max()) + 1e-6
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=0, atol=1e-7, msg=key)
    for ours, theirs in zip(converted.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert segops.revert(converted) is converted
    assert [type(m) for m in converted.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        torch.testing.assert_close(tensor(converted.eval()(x)), tensor(model.eval()(x)), rtol=1e-9, atol=1e-9)


def test_it_runs_segops_and_is_undone() -> None:
    model = SegNet()
    before = copy.deepcopy(model.__dict__)
    converted = segops.convert(model, inplace=True)
    assert converted is model
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        targets = {str(node.target) for node in torch.export.export(model.eval(), (x,)).graph.nodes}
        ours = model(x)
    assert {"segops.dilated_conv2d.default", "segops.upsample_bilinear2d.default"} <= targets
    assert "aten.conv2d.default" not in targets
    assert segops.revert(model) is model
    assert type(model.conv1) is nn.Conv2d
    assert type(model.unpool) is nn.MaxUnpool2d
    assert model.__dict__.keys() == before.keys()
    assert model.conv1.__dict__.keys() == before["_modules"]["conv1"].__dict__.keys()
    assert model.unpool.__dict__.keys() == before["_modules"]["unpool"].__dict__.keys()
    with torch.no_grad():
        torch.testing.assert_close(model(x), ours)
    with pytest.raises(ValueError, match="was not converted"):
        segops.revert(model)


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean())


def test_the_report_says_what_was_left_and_why() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1),
        Standardized(1, 1, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)),
        nn.MaxPool2d(2, return_indices=True),
        segops.nn.Upsample(scale_factor=2),
        nn.Conv2d(1, 1, 1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
    )
    model[5].forward = lambda x: x
    report = segops.convert(model, rules={"7": False}).segops_report
    assert list(report) == [
        Conversion("0", "Conv2d", "segops.nn.DilatedConv2d"),
        Conversion("1", "Standardized", None, "it is derived from Conv2d, and may do something else"),
        Conversion("2", "ParametrizedConv2d", None, "it is derived from Conv2d, and may do something else"),
        Conversion("3", "MaxPool2d", None, "its int64 indices may be read by others than max-unpooling"),
        Conversion("4", "Upsample", None, "it is of segops already"),
        Conversion("5", "Conv2d", None, "its forward was replaced on this object"),
        Conversion("7", "Upsample", None, "the rule '7' says so"),
    ]


def test_rules_and_hooks() -> None:
    model = SegNet()
    seen: list[str] = []
    model.head.register_forward_hook(lambda *_: seen.append("head"))
    rules: dict[Any, bool] = {"conv1": True, nn.Conv2d: False, "*pool": False}
    converted = segops.convert(model, rules=rules)
    changed = [line.name for line in converted.segops_report if line.after]
    assert changed == ["conv1", "up"]
    converted(torch.rand(1, 3, 8, 8))
    assert seen == ["head"]
    everything = segops.convert(model)
    everything(torch.rand(1, 3, 8, 8))
    assert seen == ["head", "head"]


@pytest.mark.parametrize(
    ("model", "rules", "error", "message"),
    [
        ("unet", None, TypeError, "model must be a torch.nn.Module, got str"),
        (nn.Conv2d(1, 1, 1), {"head.*": False}, ValueError, r"the rule 'head\.\*' fits no module"),
        (nn.Conv2d(1, 1, 1), {"": 0}, TypeError, "must say True or False, got 0"),
        (nn.Conv2d(1, 1, 1), {3: True}, TypeError, "of names or of classes of modules, got 3"),
    ],
)
def test_bad_arguments(model: Any, rules: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        segops.convert(model, rules=rules)


def test_a_single_layer_and_its_precision() -> None:
    layer = segops.convert(nn.Conv2d(2, 3, 3, padding=1))
    assert type(layer) is segops.nn.DilatedConv2d
    assert segops.nn.set_precision(layer, "fast") is layer
    assert layer.precision == "fast"
    with pytest.raises(ValueError, match="precision must be one of"):
        segops.nn.set_precision(layer, "half")
    with pytest.raises(ValueError, match="no convolutions of segops"):
        segops.nn.set_precision(nn.Conv2d(2, 3, 3), "fast")


class Parts(nn.Module):
    """A convolution that is read before its norm too, behind code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.apart = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.block = smp.base.modules.Conv2dReLU(8, 8, 3)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        before = self.apart[0](x)
        x = self.block(self.apart[1](before) + before)
        pooled, indices = self.pool(x)
        rows = indices.flatten(2) // x.shape[-1]
        x = self.unpool(pooled, indices) + F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True)
        return F.interpolate(F.max_pool2d(x, 3, 1, 1), scale_factor=2, mode="bicubic") + rows.max()


def shaken(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    checks.shake(model)
    return model.eval()


def test_what_cannot_be_traced_stays_as_it_is() -> None:
    model = shaken(Parts())
    converted = segops.convert(model)
    x = torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x))
    found = {(line.name, line.before): (line.after, line.why) for line in converted.segops_report}
    assert found["block.1", "BatchNorm2d"] == ("block.0 in eval mode without gradients", "")
    assert found["block.2", "ReLU"] == ("block.0 in eval mode without gradients", "")
    assert found["apart.1", "BatchNorm2d"][0] is None
    assert found["pool", "MaxPool2d"] == (None, "its int64 indices may be read by others than max-unpooling")
    calls = {line.before: (line.after, line.why) for line in converted.segops_report if line.name == ""}
    assert calls["torch.nn.functional.max_pool2d"] == ("segops.nn.MaxPool2d", "")
    outcomes = [(line.after, line.why) for line in converted.segops_report if line.before.endswith("interpolate")]
    assert outcomes == [("segops.nn.Upsample", ""), (None, "mode='bicubic' of 4 axes and torch.float32")]
    length = len(converted.segops_report)
    converted(x)
    assert len(converted.segops_report) == length


def test_indices_of_one_byte_where_unpooling_alone_reads_them() -> None:
    converted = segops.convert(SegNet())
    dtypes: list[torch.dtype] = []
    converted.pool.register_forward_hook(lambda _, inputs, output: dtypes.append(output[1].dtype))
    converted(torch.rand(1, 3, 16, 16))
    assert dtypes == [torch.uint8]
    left = segops.convert(SegNet(), rules={"unpool": False})
    assert Conversion("pool", "MaxPool2d", "segops.nn.MaxPool2d") not in left.segops_report
    left(torch.rand(1, 3, 16, 16))


def test_a_norm_is_applied_once_whatever_happens_to_it() -> None:
    x = torch.rand(2, 3, 16, 16)
    plain = shaken(nn.Sequential(smp.base.modules.Conv2dReLU(3, 8, 3)))
    model = segops.convert(plain)
    seen: list[Tensor] = []
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
        handle = model[0][1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        torch.testing.assert_close(model(x), plain(x))
        torch.testing.assert_close(seen[0], plain[0][0](x))
        handle.remove()
        model[0][1].train()
        plain[0][1].train()
        torch.testing.assert_close(model(x), plain(x))
        model[0][1] = plain[0][1] = nn.Identity()
        torch.testing.assert_close(model(x), plain(x))


def test_a_converted_model_is_copied_pickled_and_compiled() -> None:
    model = shaken(smp.Unet("resnet18", encoder_weights=None, classes=2, encoder_depth=3, decoder_channels=(16, 8, 4)))
    converted = segops.convert(model)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert isinstance(other, smp.Unet)
            with Operators() as operators:
                torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-4)
            assert "segops.upsample_nearest2d.default" in operators.seen
            assert not any("batch_norm" in op for op in operators.seen)
        compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    assert type(segops.revert(converted)) is smp.Unet
    assert {type(m) for m in converted.modules()} == {type(m) for m in model.modules()}


def test_calls_of_functions_are_left_by_a_rule() -> None:
    x = torch.rand(1, 3, 20, 20)
    for rules, why in (
        ({"": False}, "the rule '' says so"),
        ({"pool": False}, "a rule leaves layers, which are such calls"),
    ):
        converted = segops.convert(Parts().eval(), rules=rules)
        assert Conversion("", "calls of functions", None, why) in converted.segops_report
        assert type(converted) is Parts
        converted(x)
        assert not any("interpolate" in line.before for line in converted.segops_report)
