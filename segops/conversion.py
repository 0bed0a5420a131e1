"""Networks of other libraries on segops' layers, without a change of their outputs or of their state's keys."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from segops.functional_calls import with_functional_calls
from segops.fusion import FoldedBatchNorm2d, FoldedReLU, FoldingConv2d, links
from segops.nn import DilatedConv2d, MaxPool2d, MaxUnpool2d, Upsample, UpsamplingBilinear2d, UpsamplingNearest2d

REPLACEMENTS: dict[type[nn.Module], tuple[type[nn.Module], dict[str, Any]]] = {
    nn.Conv2d: (DilatedConv2d, {"precision": "default"}),
    nn.MaxPool2d: (MaxPool2d, {}),
    nn.MaxUnpool2d: (MaxUnpool2d, {"dilation": 1}),
    nn.Upsample: (Upsample, {}),
    nn.UpsamplingBilinear2d: (UpsamplingBilinear2d, {}),
    nn.UpsamplingNearest2d: (UpsamplingNearest2d, {}),
}
"""Layers of torch.nn, what stands for each, and the attributes that it has besides."""

FOLLOWERS: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm2d: FoldedBatchNorm2d, nn.ReLU: FoldedReLU}
"""What stands for the layers behind a convolution that applies them."""

READ_BY_OTHERS = "its int64 indices may be read by others than max-unpooling"
BY_RULE = "the rule"

Rules = Mapping[str | type[nn.Module], bool]


@dataclass(frozen=True)
class Conversion:
    """A line of ``model.segops_report``.

    Attributes:
        name: of the module in the model, "" for the model itself and for calls of functions in its code.
        before: name of its class, or of the function.
        after: what replaced it; None where it was left.
        why: it was left; "" where it was replaced.
    """

    name: str
    before: str
    after: str | None
    why: str = ""


class Report(list[Conversion]):
    """Lines of what was changed, and of what was left and why."""

    def add_call(self, function: str, after: str | None, why: str) -> None:
        """A line for a function that the model's code has called, once for each outcome."""
        line = Conversion("", function, after, why)
        if line not in self:
            self.append(line)


def convert(model: nn.Module, *, inplace: bool = False, rules: Rules | None = None) -> nn.Module:
    """Replace a model's layers by those of segops that have their arguments.

    The modules stay the objects they are, with their parameters, buffers and hooks, and only their class changes, so
    that the keys of the state and all references to them stay as well. Outputs and gradients are the same but for
    rounding; they can be differentiated once. Three things are more than a layer for a layer:

    * A convolution applies the :class:`torch.nn.BatchNorm2d` behind it, and a :class:`torch.nn.ReLU` behind that, in
      eval mode and without gradients, where :mod:`torch.fx` traces that nothing else reads what is between them. Of
      models that cannot be traced, their modules are traced.
    * A pooling returns indices of one byte where it can be traced that :class:`torch.nn.MaxUnpool2d` of the same window
      alone reads them; else torch's int64 ones, which :class:`segops.nn.MaxUnpool2d` takes too.
    * While the model's forward runs, calls of :func:`torch.nn.functional.interpolate`, ``max_pool2d`` and
      ``max_unpool2d`` run on segops. Not where the model's modules are called by themselves, nor where a rule leaves
      poolings or upsamplings, which are such calls. Losses are not replaced.

    Args:
        model: any module.
        inplace: change `model` itself rather than a deep copy.
        rules: which modules to replace, by a pattern of their names (``"backbone.*"``, as of :mod:`fnmatch`) or by
            their class. The first rule that fits decides; without one a module is replaced. A rule for ``""`` is for
            the calls of functions.

    Returns:
        The model, with the list ``segops_report`` of :class:`Conversion`: a line for each module that is a layer of
        :data:`REPLACEMENTS` or derived from one, for each batch norm, each ReLU that a convolution applies, and, once
        the model has run, for each kind of call of a function.

    Raises:
        TypeError: model is no module, or a rule that is neither a pattern nor a class, or not True or False.
        ValueError: a rule that fits no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"segops.convert: model must be a torch.nn.Module, got {type(model).__name__}")
    rules = {} if rules is None else rules
    _check(model, rules)
    if not inplace:
        model = copy.deepcopy(model)
    found = links(model)
    modules = dict(model.named_modules())
    layers = {name: origin for name, module in modules.items() if (origin := _origin(module)) is not None}
    left = {name: _why_left(name, modules[name], origin, rules) for name, origin in layers.items()}
    for name, unpools in found.unpools.items():
        if left[name] == READ_BY_OTHERS and not any(left[unpool] for unpool in unpools):
            left[name] = ""
    folds = {name: after for name, after in found.norms.items() if not left[name]}
    applied = {follower: name for name, after in folds.items() for follower in after}
    report = Report()
    for name, module in modules.items():
        before = type(module).__name__
        if name in applied:
            _become(module, FOLLOWERS[type(module)])
            report.append(Conversion(name, before, f"{applied[name]} in eval mode without gradients"))
        elif name in layers and left[name]:
            report.append(Conversion(name, before, None, left[name]))
        elif name in layers:
            after, attributes = REPLACEMENTS[layers[name]]
            followers = tuple(_placed(model, follower) for follower in folds.get(name, ()))
            more: dict[str, Any] = {"_segops_followers": followers} if followers else {}
            _become(module, FoldingConv2d if followers else after, **attributes, **more)
            report.append(Conversion(name, before, f"segops.nn.{after.__name__}"))
        elif isinstance(module, nn.BatchNorm2d):
            why = "it cannot be traced that it alone follows a convolution of segops"
            report.append(Conversion(name, before, None, why))
    of_calls = _why_calls_are_left(model, layers, left, rules)
    if of_calls is None:
        kind: Any = type(model)
        _become(model, with_functional_calls(kind))
    elif of_calls:
        report.append(Conversion("", "calls of functions", None, of_calls))
    model.__dict__["segops_report"] = report
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo :func:`convert`, in place: every module has its class again, and whatever it has learnt since.

    Raises:
        ValueError: a model that was not converted.
    """
    if "segops_report" not in model.__dict__:
        raise ValueError("segops.revert: model was not converted by segops.convert")
    for module in model.modules():
        origin, attributes = module.__dict__.pop("_segops_replaced", (None, ()))
        if origin is not None:
            for attribute in attributes:
                delattr(module, attribute)
            module.__dict__.pop("_prepacked", None)
            module.__class__ = origin
    del model.__dict__["segops_report"]
    return model


def _become(module: nn.Module, cls: type[nn.Module], **attributes: Any) -> None:
    """Change a module's class and remember how to undo it."""
    module.__dict__["_segops_replaced"] = (type(module), tuple(attributes))
    module.__dict__.update(attributes)
    module.__class__ = cls


def _origin(module: nn.Module) -> type[nn.Module] | None:
    return next((cls for cls in type(module).__mro__ if cls in REPLACEMENTS), None)


def _placed(model: nn.Module, name: str) -> tuple[nn.Module, str, nn.Module]:
    parent, _, last = name.rpartition(".")
    return model.get_submodule(parent), last, model.get_submodule(name)


def _why_calls_are_left(
    model: nn.Module, layers: Mapping[str, type[nn.Module]], left: Mapping[str, str], rules: Rules
) -> str | None:
    """The reason, None to replace them, or "" for a model that is a layer itself and has no code of its own."""
    if "" in layers or type(model).__module__.startswith("torch.nn.modules"):
        return ""
    if isinstance(model, torch.jit.ScriptModule) or "forward" in model.__dict__:
        return "the model's forward is not that of its class"
    if rule := _left_by_rule("", model, rules):
        return rule
    if any(why.startswith(BY_RULE) for name, why in left.items() if layers[name] is not nn.Conv2d):
        return "a rule leaves layers, which are such calls"
    return None


def _check(model: nn.Module, rules: Rules) -> None:
    modules = list(model.named_modules())
    for rule, wanted in rules.items():
        if not isinstance(wanted, bool):
            raise TypeError(f"segops.convert: rules must say True or False, got {wanted!r} of {rule!r}")
        if not isinstance(rule, str) and not (isinstance(rule, type) and issubclass(rule, nn.Module)):
            raise TypeError(f"segops.convert: rules must be of names or of classes of modules, got {rule!r}")
        if not any(_fits(rule, name, module) for name, module in modules):
            raise ValueError(f"segops.convert: the rule {rule!r} fits no module of the model")


def _fits(rule: str | type[nn.Module], name: str, module: nn.Module) -> bool:
    return fnmatch.fnmatchcase(name, rule) if isinstance(rule, str) else isinstance(module, rule)


def _why_left(name: str, module: nn.Module, origin: type[nn.Module], rules: Rules) -> str:
    """The reason not to replace a module, or "" to replace it."""
    if rule := _left_by_rule(name, module, rules):
        return rule
    if isinstance(module, REPLACEMENTS[origin][0]):
        return "it is of segops already"
    if type(module) is not origin:
        return f"it is derived from {origin.__name__}, and may do something else"
    if "forward" in module.__dict__:
        return "its forward was replaced on this object"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return READ_BY_OTHERS
    return ""


def _left_by_rule(name: str, module: nn.Module, rules: Rules) -> str:
    for rule, wanted in rules.items():
        if _fits(rule, name, module):
            return "" if wanted else f"{BY_RULE} {rule if isinstance(rule, str) else rule.__name__!r} says so"
    return ""
