"""What each layer of a network costs and sees, from one forward pass that computes nothing."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from segops.models import receptive_field
from segops.models.receptive_field import Axes
from segops.nn import GOctConv2d


@dataclass(frozen=True)
class LayerSummary:
    """One module that computes something by itself.

    Attributes:
        name: of the module in the network, "" for the network itself.
        kind: the name of its class.
        parameters: numbers of it and of those modules inside it that are no layers themselves.
        multiply_adds: of its convolutions and matrix products, all calls together.
        output_shape: of its last operator's result, at the size that was asked for.
        output_stride: pixels of the image between neighbours of the output, for rows and columns; None where the
            output has not come from the image.
        receptive_field: rows and columns of the image that one pixel of the output can depend on, were the image
            without end; infinite where that is all of it; None as above.
        activation_bytes: of the new memory of its results in inference.
    """

    name: str
    kind: str
    parameters: int
    multiply_adds: int
    output_shape: tuple[int, ...]
    output_stride: tuple[float, float] | None
    receptive_field: tuple[float, float] | None
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """A network at one size of image.

    Attributes:
        layers: in the order in which they first compute something.
        parameters: numbers in all, each counted once.
        multiply_adds, activation_bytes: sums over the layers.
        peak_activation_bytes: the most that results hold at once in inference, the image included.
        output_stride: the largest of the layers', rows or columns: how coarse the coarsest features are. Layers whose
            receptive field is infinite, such as a mean over the image, are left out.
        receptive_field: that of the network's (first) output.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    peak_activation_bytes: int
    output_stride: float
    receptive_field: tuple[float, float] | None


def summary(model: nn.Module, size: int | Sequence[int], in_channels: int | None = None) -> Summary:
    """Parameters, multiply-adds, output stride, receptive field and activation memory of each layer.

    The network runs in eval mode on tensors without memory, so that it takes no time to speak of; it may itself be on
    the meta device. Nothing of it changes. Receptive fields are theoretical: what could have an influence, the maximum
    over all paths and over positions of the output. In a max-unpooling the indices are a path. In a network that
    upsamples, an image smaller than the receptive field can make it up to one output stride too large.

    Args:
        model: any network of one image [1, in_channels, H, W].
        size: H and W, or one number for both.
        in_channels: of the image; None for those of the first convolution.

    Raises:
        TypeError, ValueError: a size that is none, or in_channels that are needed.
    """
    height, width = _size(size)
    channels = _first_channels(model) if in_channels is None else in_channels
    training = {module: module.training for module in model.modules()}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with FakeTensorMode(), torch.no_grad():
        state = {
            name: torch.empty(t.shape, dtype=t.dtype) for name, t in (*model.named_parameters(), *model.named_buffers())
        }
        image = torch.empty(1, channels, height, width, dtype=dtype)
        recorder = _Recorder(image)
        hooks = [hook for name, module in model.named_modules() for hook in recorder.watch(name, module)]
        try:
            model.eval()
            with recorder:
                output = torch.func.functional_call(model, state, (image,))
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in training.items():
                module.training = mode
    first = receptive_field.tensors_of(output)[0]
    for name, parameter in model.named_parameters():
        recorder.count_parameters(name, parameter.numel())
    layers = tuple(record.finished() for record in recorder.records.values())
    strides = [
        stride
        for layer in layers
        if layer.output_stride and layer.receptive_field
        for stride, reach in zip(layer.output_stride, layer.receptive_field, strict=True)
        if math.isfinite(stride) and math.isfinite(reach)
    ]
    return Summary(
        layers=layers,
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        peak_activation_bytes=recorder.memory.peak,
        output_stride=max(strides, default=1.0),
        receptive_field=_reach(recorder.axes.get(first)),
    )


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    sizes: Any = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sizes) != 2 or not all(type(n) is int for n in sizes):
        raise TypeError(f"segops.models.summary: size must be an int or two, got {size!r}")
    if min(sizes) < 1:
        raise ValueError(f"segops.models.summary: size must be positive, got {size!r}")
    return sizes[0], sizes[1]


def _first_channels(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, GOctConv2d):
            return module.in_channels[0]
    raise ValueError("segops.models.summary: in_channels must be given for a network without a Conv2d")


def _reach(axes: Axes | None) -> tuple[float, float] | None:
    return None if axes is None else (axes[0].reach, axes[1].reach)


@dataclass
class _Record:
    name: str
    kind: str
    parameters: int = 0
    multiply_adds: int = 0
    activation_bytes: int = 0
    output_shape: tuple[int, ...] = ()
    axes: Axes | None = None

    def finished(self) -> LayerSummary:
        stride = None if self.axes is None else (self.axes[0].step, self.axes[1].step)
        return LayerSummary(
            self.name,
            self.kind,
            self.parameters,
            self.multiply_adds,
            self.output_shape,
            stride,
            _reach(self.axes),
            self.activation_bytes,
        )


@dataclass
class _Memory:
    """Bytes of the storages that some tensor still has."""

    live: int = 0
    peak: int = 0
    owners: dict[int, int] = field(default_factory=dict)

    def add(self, t: Tensor) -> int:
        """Watch `t`; the bytes it adds."""
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        new = key not in self.owners
        self.owners[key] = self.owners.get(key, 0) + 1
        if new:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(t, self._drop, key, size)
        return size if new else 0

    def _drop(self, key: int, size: int) -> None:
        self.owners[key] -= 1
        if self.owners[key] == 0:
            del self.owners[key]
            self.live -= size


class _Recorder(TorchDispatchMode):
    """Sees every operator, and which module it belongs to."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.records: dict[str, _Record] = {}
        self.axes: Any = WeakTensorKeyDictionary()
        self.axes[image] = receptive_field.of_image(image)
        self.memory = _Memory()
        self.memory.add(image)
        self._inside: list[tuple[str, nn.Module]] = []

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._inside.append((name, module))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self._inside.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = receptive_field.tensors_of((args, kwargs))
        inputs = [(t, self.axes[t]) for t in given if t in self.axes]
        results = receptive_field.tensors_of(outputs)
        if not inputs or not results:
            return outputs
        record = self._record()
        record.multiply_adds += _multiply_adds(func, args, results[0])
        for result in results:
            axes = receptive_field.through(func, args, inputs, result)
            if axes is not None:
                self.axes[result] = axes
            if not any(result is t for t in given):
                record.activation_bytes += self.memory.add(result)
        record.output_shape, record.axes = tuple(results[0].shape), self.axes.get(results[0])
        return outputs

    def _record(self) -> _Record:
        name, module = self._inside[-1]
        if name not in self.records:
            self.records[name] = _Record(name, type(module).__name__)
        return self.records[name]

    def count_parameters(self, name: str, numbers: int) -> None:
        """Give the parameter of that name to the innermost layer that holds it."""
        while name:
            name = name.rpartition(".")[0]
            if name in self.records:
                self.records[name].parameters += numbers
                return


def _multiply_adds(func: Any, args: tuple[Any, ...], output: Tensor) -> int:
    name = func._schema.name
    if name in ("segops::dilated_conv2d", "aten::convolution"):
        image, weight = args[:2]
        transposed = name == "aten::convolution" and args[6]
        return (image if transposed else output).numel() * weight[0].numel()
    if name in ("aten::mm", "aten::bmm"):
        return output.numel() * int(args[0].shape[-1])
    if name in ("aten::addmm", "aten::baddbmm"):
        return output.numel() * int(args[1].shape[-1])
    return 0
