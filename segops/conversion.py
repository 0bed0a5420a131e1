"""Networks of other libraries on segops' layers, without a change of their outputs or of their state's keys."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

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

Rules = Mapping[str | type[nn.Module], bool]


@dataclass(frozen=True)
class Conversion:
    """A line of ``model.segops_report``.

    Attributes:
        name: of the module in the model, "" for the model itself.
        before: name of its class.
        after: name of the class that replaced it; None where it was left.
        why: it was left; "" where it was replaced.
    """

    name: str
    before: str
    after: str | None
    why: str = ""


def convert(model: nn.Module, *, inplace: bool = False, rules: Rules | None = None) -> nn.Module:
    """Replace a model's layers by those of segops that have their arguments.

    The modules stay the objects they are, with their parameters, buffers and hooks, and only their class changes, so
    that the keys of the state and all references to them stay as well. Outputs and gradients are the same but for
    rounding; they can be differentiated once. Functional calls (``torch.nn.functional.interpolate``) are code, and are
    left; losses are not layers of a model. A pooling that returns indices keeps torch's int64 ones, which may be read
    by anybody; :class:`segops.nn.MaxUnpool2d` takes them too.

    Args:
        model: any module.
        inplace: change `model` itself rather than a deep copy.
        rules: which modules to replace, by a pattern of their names (``"backbone.*"``, as of :mod:`fnmatch`) or by
            their class. The first rule that fits decides; without one a module is replaced.

    Returns:
        The model, with the list ``segops_report`` of :class:`Conversion`, a line for each module that is a layer of
        :data:`REPLACEMENTS` or derived from one.

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
    report = []
    for name, module in model.named_modules():
        origin = next((cls for cls in type(module).__mro__ if cls in REPLACEMENTS), None)
        if origin is None:
            continue
        kind = type(module).__name__
        why = _why_left(name, module, origin, rules)
        if why:
            report.append(Conversion(name, kind, None, why))
            continue
        after, attributes = REPLACEMENTS[origin]
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        module.__class__ = after
        module.__dict__["_segops_replaced"] = origin
        report.append(Conversion(name, kind, f"segops.nn.{after.__name__}"))
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
        origin = module.__dict__.pop("_segops_replaced", None)
        if origin is not None:
            for attribute in REPLACEMENTS[origin][1]:
                delattr(module, attribute)
            module.__class__ = origin
    del model.__dict__["segops_report"]
    return model


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
    for rule, wanted in rules.items():
        if _fits(rule, name, module):
            if not wanted:
                return f"the rule {rule if isinstance(rule, str) else rule.__name__!r} says so"
            break
    if isinstance(module, REPLACEMENTS[origin][0]):
        return "it is of segops already"
    if type(module) is not origin:
        return f"it is derived from {origin.__name__}, and may do something else"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return "its int64 indices may be read by others than max-unpooling"
    if "forward" in module.__dict__:
        return "its forward was replaced on this object"
    return ""
