"""What the site has besides docs/: pages from elsewhere in the tree, and tables and plots of stored results.

In a page, ``<!-- api: MODULE -->`` becomes the reference of all that the module's ``__all__`` names, ``<!-- results:
PREFIX, ... -->`` plots and tables of the operators whose names in the results begin so, and ``<!-- overview -->`` all
plots.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import plots  # noqa: E402
from benchmarks.compare import regime, report  # noqa: E402

#: Files of the repository that are pages (or, not being Markdown, are linked from pages), and where.
FROM_THE_TREE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    **{f"benchmarks/results/{name}.md": f"benchmarks/results/{name}.md" for name in ("RESULTS", "AVX2", "NETWORKS")},
    **{name: name for name in ("tests/ladder/README.md", "tests/ladder/mutants.md")},
    **{
        f"tests/ops/test_{loss}_peers.py": f"tests/ops/test_{loss}_peers.py"
        for loss in ("dice_ce_loss", "dice_bce_loss")
    },
}
RUNS = {name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("recycled", "default")}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in FROM_THE_TREE.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, place, content=text))
    for name in operators():
        files.append(File.generated(config, plot_of(name), content=plots.svg(records(RUNS["recycled"], name))))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"<!-- api: (\S+) -->", lambda m: api(m[1]), markdown)
    markdown = re.sub(r"<!-- results: (.+) -->", lambda m: measured(m[1].split(", "), up), markdown)
    return markdown.replace(
        "<!-- overview -->", "\n\n".join(f"## {name}\n\n{picture(name, up)}" for name in operators())
    )


def api(module: str) -> str:
    """The reference of what the ``__all__`` of a module names, which is read and not imported, but its submodules."""
    path = ROOT / module.replace(".", "/")
    names, submodules = [], set()
    for node in ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == module:
            submodules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    if not names:
        raise ValueError(f"{module} has no __all__")
    return "\n\n".join(f"::: {module}.{name}" for name in names if name not in submodules)


@cache
def operators() -> list[str]:
    """Of the results, those that have a plot: what comes before a comma is the operator."""
    return list(dict.fromkeys(b["extra_info"]["op"].split(",")[0] for b in RUNS["recycled"]["benchmarks"]))


def records(run: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = [b["extra_info"] for b in run["benchmarks"]]
    return [record for record in found if record["op"].split(",")[0] == name]


def plot_of(name: str) -> str:
    return f"plots/{re.sub(r'[^a-z0-9_]+', '_', name)}.svg"


def picture(name: str, up: str) -> str:
    return f"![{name}: time of each contender as a multiple of segops']({up}{plot_of(name)})"


def measured(prefixes: list[str], up: str) -> str:
    names = [name for name in operators() if name.startswith(tuple(prefixes))]
    if not names:
        raise ValueError(f"no stored result begins with any of {prefixes}")
    parts = [picture(name, up) for name in names]
    for run in RUNS.values():
        of_these = [b for b in run["benchmarks"] if b["extra_info"]["op"].startswith(tuple(prefixes))]
        if of_these:
            text = re.sub(r"^### ", "#### ", report({**run, "benchmarks": of_these}), flags=re.MULTILINE)
            parts.append(f"### Regime {regime(run)}\n\n{text}")
    return "\n\n".join(parts)
