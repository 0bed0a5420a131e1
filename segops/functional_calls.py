"""Calls of torch.nn.functional that a converted model's own code makes, run by segops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segops.nn.pooling import MaxPool2d
from segops.nn.upsampling import Upsample
from segops.ops.max_unpool import max_unpool2d

Size = int | Sequence[int]


class _Left(Exception):
    """Why a call is left to torch."""


def _interpolate(
    input: Tensor,
    size: Size | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    scale: Any = scale_factor if scale_factor is None or isinstance(scale_factor, float | int) else tuple(scale_factor)
    layer = Upsample(size, scale, mode, align_corners, recompute_scale_factor)  # type: ignore[arg-type]
    if antialias or not layer.applies(input):
        raise _Left(f"mode={mode!r}{', antialias=True,' if antialias else ''} of {input.ndim} axes and {input.dtype}")
    return layer(input)


def _max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices:
        raise _Left("its int64 indices may be read by others than max-unpooling")
    pooled: Tensor = MaxPool2d(kernel_size, stride, padding, dilation, False, ceil_mode)(input)  # type: ignore[arg-type]
    return pooled


def _max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    return max_unpool2d(input, indices, kernel_size, stride, padding, 1, output_size)


#: By torch's function: its name, the name of what stands for it, and that.
_REPLACEMENTS: dict[Callable[..., Any], tuple[str, str, Callable[..., Tensor]]] = {
    F.interpolate: ("interpolate", "segops.nn.Upsample", _interpolate),
    F.max_pool2d: ("max_pool2d", "segops.nn.MaxPool2d", _max_pool2d),
    F.max_pool2d_with_indices: ("max_pool2d", "segops.nn.MaxPool2d", _max_pool2d),
    F.max_unpool2d: ("max_unpool2d", "segops.max_unpool2d", _max_unpool2d),
}


class FunctionalCalls(TorchFunctionMode):
    """While it is on, torch's functions that segops has run there.

    Args:
        record: called with the name of torch's function, the name of what ran instead or None, and why None.
    """

    def __init__(self, record: Callable[[str, str | None, str], None]) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = _REPLACEMENTS.get(func)
        if found is None:
            return func(*args, **kwargs)
        name, ours, function = found
        try:
            result = function(*args, **kwargs)
        except _Left as reason:
            self.record(name, None, str(reason))
            return func(*args, **kwargs)
        self.record(name, ours, "")
        return result


@functools.cache
def with_functional_calls(origin: Any) -> type[nn.Module]:
    """`origin` whose forward runs under :class:`FunctionalCalls`, and tells its method ``_segops_record``'s report."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with FunctionalCalls(self._segops_record):
            return origin.forward(self, *args, **kwargs)

    def record(self: Any, name: str, after: str | None, why: str) -> None:
        if not torch.compiler.is_compiling():
            self.segops_report.add_call(f"torch.nn.functional.{name}", after, why)

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return (_new, (origin,), *nn.Module.__reduce_ex__(self, protocol)[2:])

    inside = {"forward": forward, "_segops_record": record, "__reduce_ex__": reduce, "__doc__": origin.__doc__}
    names = {"__module__": origin.__module__, "__qualname__": origin.__qualname__}
    return type(origin.__name__, (origin,), inside | names)


def _new(origin: Any) -> Any:
    cls = with_functional_calls(origin)
    return cls.__new__(cls)
