"""Nothing that comes in a checkpoint, a data set or a file of settings is executed: the rule, and what enforces it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import yaml

from segops.engine import checkpoint
from segops.engine.config import ConfigError, read_yaml
from segops.engine.output import RunError
from tests.test_build import ROOT

#: Functions that run what they are given, or make objects of any class from it.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.load", "marshal.loads", "shelve.open", "runpy.run_path", "yaml.load", "yaml.load_all", "yaml.full_load",
    "yaml.unsafe_load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "torch.export.load",
}  # fmt: skip
#: What may be called with one argument that makes it safe, and the only value of that argument.
GUARDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def faults(source: str) -> list[str]:
    """Calls in Python code that could run what they read; pillow opens images in one place, which checks their size."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "runpy", "dill"):
            found.append(f"{node.lineno}: from {node.module} import")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in GUARDED:
            argument, value = GUARDED[name]
            if not isinstance(given.get(argument), ast.Constant) or given[argument].value is not value:
                found.append(f"{node.lineno}: {name} without {argument}={value}")
        elif name in FORBIDDEN or (isinstance(given.get("shell"), ast.Constant) and given["shell"].value):
            found.append(f"{node.lineno}: {name}")
    return found


def test_no_code_of_the_package_runs_what_it_reads() -> None:
    sources = [path for path in (ROOT / "segops").rglob("*.py") if path.is_file()]
    found = {str(path.relative_to(ROOT)): lines for path in sources if (lines := faults(path.read_text()))}
    assert sources
    assert not found
    opened = {path.name for path in sources if "Image.open(" in path.read_text()}
    assert opened == {"records.py"}, "its own pictures; all others are opened by segops.data.files, by their size"


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "pickle.loads(data)",
        "from pickle import loads",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_audit_finds(code: str) -> None:
    assert faults(code)
    assert not faults("torch.load(path, weights_only=True); model.eval(); re.compile(text); yaml.safe_load(text)")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_a_checkpoint_of_a_run_is_not_executed(tmp_path: Path) -> None:
    torch.save({"format": "segops checkpoint 1", "config": Harmful()}, tmp_path / "last.pt")
    with pytest.raises(RunError, match=r"last\.pt is not a checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!harmful {}"])
def test_settings_are_plain_values(tag: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"model: {tag}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml is not YAML: could not determine a constructor"):
        read_yaml(tmp_path / "run.yaml")
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(f"model: {tag}")
