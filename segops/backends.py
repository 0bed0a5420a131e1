"""Which kernels run: native, triton, simt or reference.

An explicit ``backend=`` argument comes first, then ``with segops.backends.use(...)``, then the environment variable
``SEGOPS_BACKEND``, then the best one that can run. What was asked for by name runs or raises why it cannot; only the
automatic choice falls back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segops import _library, triton

__all__ = ["NAMES", "BackendUnavailableError", "available", "reason_unavailable", "requested", "resolve", "use"]

NAMES = ("native", "triton", "simt", "reference")
_NAMESPACES = {"native": "segops", "triton": "segops_triton", "simt": "segops_simt"}
_chosen: list[str] = []


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run here; the message says why."""


def reason_unavailable(backend: str, device_type: str = "cpu") -> str | None:
    """Why `backend` cannot run on tensors of `device_type` ("cpu", "cuda"), or None if it can."""
    _check_name(backend, "backend")
    if backend == "reference":
        return None
    if backend == "triton":
        return triton.reason_unavailable(device_type)
    if backend == "simt":
        only_cpu = "it executes the CUDA kernels on the host, for CPU tensors"
        return _library.simt_unavailable if device_type == "cpu" else only_cpu
    return _native_unavailable(device_type)


def _native_unavailable(device_type: str) -> str | None:
    if device_type in ("cpu", "meta"):  # meta tensors go through the shapes of the same operators
        return _library.cpu_unavailable
    if device_type == "cuda":
        return _library.cuda_unavailable
    return f"segops has no kernels for device type {device_type!r}"


def available(device_type: str = "cpu") -> tuple[str, ...]:
    """The backends that can run on tensors of `device_type`, best first."""
    return tuple(name for name in NAMES if reason_unavailable(name, device_type) is None)


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Within this context, ops without an explicit ``backend=`` run on `backend`, in every thread of the process.

    Examples:
        >>> with segops.backends.use("reference"):
        ...     segops.backends.resolve(None, torch.device("cpu"))
        'reference'
    """
    _check_name(backend, "backend")
    _chosen.append(backend)
    try:
        yield
    finally:
        _chosen.pop()


def requested() -> str | None:
    """The backend asked for by name, with `use` or SEGOPS_BACKEND, for ops that get no ``backend=``."""
    if _chosen:
        return _chosen[-1]
    wanted = os.environ.get("SEGOPS_BACKEND") or None
    if wanted is not None:
        _check_name(wanted, "SEGOPS_BACKEND")
    return wanted


def resolve(backend: str | None, device: torch.device) -> str:
    """The backend that an op given ``backend=backend`` runs on `device`.

    Raises:
        ValueError: the name is none of `NAMES`.
        BackendUnavailableError: a backend chosen by name cannot run on this device.
    """
    wanted = requested() if backend is None else backend
    if wanted is None:
        return "native" if _native_unavailable(device.type) is None else "reference"
    _check_name(wanted, "backend")
    reason = reason_unavailable(wanted, device.type)
    if reason is not None:
        raise BackendUnavailableError(f"segops: backend {wanted!r} cannot run on {device.type} tensors: {reason}")
    return wanted


def namespace(backend: str) -> str:
    """The namespace of torch.ops that holds the operators of `backend`."""
    return _NAMESPACES[backend]


def run(backend: str, name: str, *arguments: Any) -> Any:
    """Call the operator `name` of `backend`, past its autograd kernel, which is Python, where nobody differentiates."""
    op = getattr(getattr(torch.ops, namespace(backend)), name)
    # Graphs are of the whole operator; transforms of torch.func have levels of their own, which may be differentiated.
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return op(*arguments)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op.default(*arguments)


def _check_name(name: str, what: str) -> None:
    if name not in NAMES:
        raise ValueError(f"segops: {what} must be one of {', '.join(NAMES)}, got {name!r}")
