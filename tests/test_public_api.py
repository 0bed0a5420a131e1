"""The public names and their arguments are those of public_api.txt: what changes here changes for users.

After a change that is meant: ``python -m tests.test_public_api > tests/public_api.txt``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import segops
from tests.test_build import ROOT

STORED = Path(__file__).with_name("public_api.txt")
#: The modules whose ``__all__`` is public.
MODULES = (
    "segops",
    "segops.backends",
    "segops.data",
    "segops.metrics",
    "segops.metrics.functional",
    "segops.models",
    "segops.nn",
    "segops.onnx",
    "segops.ops",
)


def arguments(function: object) -> str:
    """Names, kinds and defaults; annotations are for type checkers and differ from Python to Python."""
    try:
        signature = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def public_api() -> Iterator[str]:
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value) or not (inspect.isclass(value) or inspect.isfunction(value)):
                yield f"{module_name}.{name}"
                continue
            yield f"{module_name}.{name}{arguments(value)}"
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{module_name}.{name}.{method}{arguments(function)}"


def test_the_public_api_is_what_was_written_down() -> None:
    now, stored = list(public_api()), STORED.read_text().splitlines()
    gone, new = [line for line in stored if line not in now], [line for line in now if line not in stored]
    assert now == stored, f"gone: {gone}; new: {new}; if that is meant: python -m tests.test_public_api > {STORED}"


def test_every_module_with_an_all_is_public() -> None:
    found = {path for path in (ROOT / "segops").rglob("*.py") if "\n__all__ = " in path.read_text()}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in found}
    assert names == set(MODULES)


def test_versions_agree() -> None:
    assert f"\nversion: {segops.__version__}\n" in (ROOT / "CITATION.cff").read_text()


if __name__ == "__main__":
    print(*public_api(), sep="\n")
