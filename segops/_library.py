"""Loads the compiled libraries and defines operators on them.

A library that is missing or cannot be loaded is not an error here: `segops.backends` reports the reason, and whoever
asks for that backend gets it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from segops import triton as _triton

OLDEST_TORCH = (2, 11)
_DIRECTORY = Path(__file__).parent / "lib"
_HOW_TO_BUILD = "build it with: pip install -e . (or make build)"

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < OLDEST_TORCH:
    raise ImportError(f"segops needs torch >= 2.11, found {torch.__version__}: pip install -U torch")


def _load(name: str) -> str | None:
    """Load lib<name>.so into torch; the reason why not, or None."""
    path = _DIRECTORY / f"lib{name}.so"
    if not path.exists():
        return f"lib{name}.so is not built; {_HOW_TO_BUILD}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"lib{name}.so does not load: {error}"
    return None


def _load_cuda() -> str | None:
    """The CUDA library is loaded only into a torch of the same CUDA major version."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if torch.version.cuda.split(".")[0] != "13":
        return f"built for CUDA 13, this torch has CUDA {torch.version.cuda}"
    return _load("segops_cuda")


def _load_native_module() -> ModuleType | None:
    try:
        return importlib.import_module("segops._native")
    except ImportError:
        return None


#: Why the library of the CPU kernels (of CUDA, of their host execution) cannot be used; None if it is loaded.
cpu_unavailable: str | None = _load("segops")
cuda_unavailable: str | None = cpu_unavailable or _load_cuda()
simt_unavailable: str | None = _load("segops_simt")
#: The pybind11 module, or None if it is not built for this Python.
native: ModuleType | None = _load_native_module() if cpu_unavailable is None else None
if cpu_unavailable is None and native is None:
    cpu_unavailable = f"segops._native is not built for this Python; {_HOW_TO_BUILD}"

#: One namespace of torch.ops for each backend that has compiled or registered kernels.
NAMESPACES = ("segops", "segops_simt", "segops_triton")
_fragments = {name: torch.library.Library(name, "FRAGMENT") for name in NAMESPACES}
_triton.register(_fragments["segops_triton"])


def define_op(
    schema: str,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define an operator in every backend's namespace: its schema, its result for fake tensors, and its derivative.

    ``backward(namespace, ctx, *grads)`` gets the namespace of torch.ops it runs in, so that it calls the same backend.
    """
    name = schema.split("(", 1)[0]
    for namespace, fragment in _fragments.items():
        fragment.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        qualified = f"{namespace}::{name}"
        torch.library.register_fake(qualified, fake, lib=fragment)
        if backward is not None:
            kernel = _autograd_kernel(namespace, name, setup_context, backward)
            fragment.impl(name, kernel, "Autograd", with_keyset=True)


def _autograd_kernel(
    namespace: str, name: str, setup_context: Callable[..., None] | None, backward: Callable[..., Any]
) -> Callable[..., Any]:
    """What torch.library.register_autograd registers, less its generality.

    That fills in defaults, which our schemas have none of, in time quadratic in the number of arguments: 15 us a call
    of an operator with a dozen, as much as the rest of the call.
    """

    def redispatch(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            op = getattr(getattr(torch.ops, namespace), name).default
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        output = redispatch(keyset, args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    def backward_of(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return (None, *backward(getattr(torch.ops, namespace), ctx, *grads))

    function: Any = type(
        f"{name}_autograd",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward_of)},
    )

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return function.apply(keyset, *args)
        return redispatch(keyset, args)

    return kernel


def no_double_backward(op: str) -> Callable[..., Any]:
    """The derivative of a backward operator that has none: a clear error instead of a silently missing gradient."""

    def backward(namespace: Any, ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"segops.{op}: double backward is not implemented (create_graph=True)")

    return backward


def refuse_forward_mode(op: str, x: Tensor) -> None:
    """Kernels have no forward derivative, and would drop the tangent of `x` without a word."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"segops.{op}: forward-mode AD (jvp) is not supported")
