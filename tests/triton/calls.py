"""The modules ``tests/triton/calls_<operator>.py``, found by their names.

Each has `compiled()`, which yields cases, a name and a call of the operator's Triton functions; `fenced()`, which calls
them on odd shapes, so that every kernel runs; and `PLANTED`, arguments of kernels that let them leave their tensors
where they are one too large.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tests.triton
from segops.triton import _runtime

PREFIX = "calls_"


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(tests.triton.__path__))
    return [name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)]


def of(operator: str) -> ModuleType:
    return importlib.import_module(f"tests.triton.{PREFIX}{operator}")


def kernels(operator: str) -> set[str]:
    """Names of the kernels that the operator's Triton module launches: those of its parts that end in "_kernel"."""
    module = importlib.import_module(f"segops.triton.{operator}")
    return {value.__name__ for name, value in vars(module).items() if name.endswith("_kernel")}


def replace_launch(operator: str, launch: Callable[..., Any]) -> None:
    """From now on the operator's Triton functions launch kernels with `launch` in place of `_runtime.launch`."""
    importlib.import_module(f"segops.triton.{operator}")
    for name, module in list(sys.modules.items()):
        if name.startswith("segops.triton.") and module is not _runtime and hasattr(module, "launch"):
            module.launch = launch  # type: ignore[attr-defined]
