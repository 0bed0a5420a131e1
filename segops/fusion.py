"""What of a model's layers belongs together: convolutions and the norms that follow them, poolings and unpoolings.

Found in the graphs that torch.fx traces of the model, or of those of its modules that can be traced.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from segops.nn.convolution import DilatedConv2d
from segops.nn.norm_act import folded, is_watched

#: What a tensor carries that was normalised, and activated, by the convolution: the modules that have nothing to do.
_APPLIED = "_segops_applied"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class FoldingConv2d(DilatedConv2d):
    """A convolution that applies the batch norm behind it, and a ReLU behind that, which then hand their input on.

    In eval mode, without gradients and outside compiled graphs, as long as these modules are where they were and
    nobody watches. Otherwise each does its own part.
    """

    _segops_followers: tuple[tuple[nn.Module, str, nn.Module], ...] = ()  # parent, name in it, module

    def forward(self, input: Tensor) -> Tensor:
        ready = self._ready() if input.ndim == 4 else ()
        if not ready:
            return super().forward(input)
        scale, shift = folded(ready[0])  # type: ignore[arg-type]
        activation = "relu" if len(ready) > 1 else None
        output = self.convolve(input, self.weight, self.bias, scale=scale, shift=shift, activation=activation)
        setattr(output, _APPLIED, ready)
        return output

    def _ready(self) -> tuple[nn.Module, ...]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_watched(self):
            return ()
        ready: list[nn.Module] = []
        for parent, name, module in self._segops_followers:
            if parent._modules.get(name) is not module or is_watched(module) or (not ready and module.training):
                break
            ready.append(module)
        return tuple(ready)


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that may have been applied by the convolution before it."""

    def forward(self, input: Tensor) -> Tensor:
        return input if self in getattr(input, _APPLIED, ()) else super().forward(input)


class FoldedReLU(nn.ReLU):
    """A ReLU that may have been applied by the convolution before it."""

    def forward(self, input: Tensor) -> Tensor:
        return input if self in getattr(input, _APPLIED, ()) else super().forward(input)


class Links(NamedTuple):
    """By names of modules.

    Attributes:
        norms: of a convolution, the batch norm that alone reads it, and the ReLU that alone reads that, if any.
        unpools: of a pooling, the unpoolings of its own window, which alone read its indices.
    """

    norms: dict[str, tuple[str, ...]]
    unpools: dict[str, tuple[str, ...]]


def links(model: nn.Module) -> Links:
    """What holds in training and in eval mode alike. The model is not touched: a copy of its structure is traced."""
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    found = []
    for training in (True, False):
        twin.train(training)
        calls = _calls(twin)
        found.append(Links(_norms(calls), _unpools(calls)))
    both, other = found
    return Links(
        {name: after for name, after in both.norms.items() if other.norms.get(name) == after},
        {name: after for name, after in both.unpools.items() if other.unpools.get(name) == after},
    )


def _graphs(module: nn.Module, name: str) -> Iterator[tuple[str, fx.Graph]]:
    """Graphs of the largest parts that can be traced, each with the prefix of its modules' names.

    A container of an untraceable module is not one part: that module may call what is in it one by one.
    """
    tracer = fx.Tracer()
    if tracer.is_leaf_module(module, name):
        return
    if not name or type(module) not in _CONTAINERS:
        try:
            yield f"{name}." if name else "", tracer.trace(module)
            return
        except Exception:  # whatever the code of a model makes of a proxy
            pass
    for child_name, child in module.named_children():
        yield from _graphs(child, f"{name}.{child_name}" if name else child_name)


class _Calls(NamedTuple):
    """What the graphs call.

    Attributes:
        names: of modules; a module with several has one.
        module_of: a node that calls it.
        nodes: that call a module.
    """

    names: dict[nn.Module, str]
    module_of: dict[fx.Node, nn.Module]
    nodes: dict[nn.Module, list[fx.Node]]


def _calls(model: nn.Module) -> _Calls:
    calls = _Calls({module: name for name, module in model.named_modules()}, {}, {})
    for prefix, graph in _graphs(model, ""):
        for node in graph.nodes:
            if node.op == "call_module":
                module = model.get_submodule(f"{prefix}{node.target}")
                calls.module_of[node] = module
                calls.nodes.setdefault(module, []).append(node)
    return calls


def _norms(calls: _Calls) -> dict[str, tuple[str, ...]]:
    found = {}
    for conv, nodes in calls.nodes.items():
        if type(conv) is not nn.Conv2d or len(nodes) > 1:
            continue
        reader = _only_reader(nodes[0])
        norm = calls.module_of.get(reader) if reader else None
        if reader is None or type(norm) is not nn.BatchNorm2d or len(calls.nodes[norm]) > 1:
            continue
        if norm.running_mean is None or not norm.affine:
            continue
        last = _only_reader(reader)
        relu = calls.module_of[last] if last else None
        found[calls.names[conv]] = tuple(calls.names[m] for m in (norm, relu) if m is norm or type(m) is nn.ReLU)
    return found


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The call of a module that alone reads what `node` gives."""
    readers = list(node.users)
    alone = len(readers) == 1 and readers[0].op == "call_module" and len(readers[0].all_input_nodes) == 1
    return readers[0] if alone else None


def _unpools(calls: _Calls) -> dict[str, tuple[str, ...]]:
    found = {}
    for pool, nodes in calls.nodes.items():
        if type(pool) is not nn.MaxPool2d or not pool.return_indices or _pair(pool.dilation) != (1, 1):
            continue
        readers = [calls.module_of.get(reader) for node in nodes for reader in _readers_of_indices(node)]
        unpools = [m for m in readers if type(m) is nn.MaxUnpool2d and _window(m) == _window(pool)]
        if unpools and len(unpools) == len(readers):
            found[calls.names[pool]] = tuple(dict.fromkeys(calls.names[m] for m in unpools))
    return found


def _readers_of_indices(pool: fx.Node) -> Iterator[fx.Node]:
    """Calls of modules that read a pooling's indices as their second argument; `pool` itself for any other reader."""
    for item in pool.users:
        position = item.args[1] if item.op == "call_function" and item.target is operator.getitem else None
        if position == 0:
            continue
        for reader in item.users if position == 1 else (pool,):
            indices = reader.args[1] if len(reader.args) > 1 else reader.kwargs.get("indices")
            yield reader if indices is item and reader.args[:1] != (item,) else pool


def _window(layer: Any) -> tuple[tuple[int, int], ...]:
    stride = layer.kernel_size if layer.stride is None else layer.stride
    return _pair(layer.kernel_size), _pair(stride), _pair(layer.padding)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
