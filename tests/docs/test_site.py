"""The site is built from the sources, without a warning, and leaves nothing out."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.test_build import OPS, ROOT
from tests.test_public_api import MODULES

pytest.importorskip("mkdocs", reason="the site needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    place = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(place), strict=True))
    return place


def test_the_reference_has_every_public_name(site: Path) -> None:
    from mkdocstrings import Inventory

    with open(site / "objects.inv", "rb") as file:
        documented = set(Inventory.parse_sphinx(file))
    for module in MODULES:
        names = set(importlib.import_module(module).__all__) - {name.rpartition(".")[2] for name in MODULES}
        assert names <= {name.rpartition(".")[2] for name in documented if name.startswith("segops")}, module


def test_every_operator_has_a_note_with_its_measurements(site: Path) -> None:
    for op in OPS:
        note = (site / "kernels" / f"{op}.html").read_text()
        for heading in ("The maths", "Memory traffic and floor", "How", "What was measured"):
            assert re.search(rf"<h2[^>]*>{heading}", note), (op, heading)
        pictures = re.findall(r'src="\.\./(plots/[^"]+\.svg)"', note)
        assert pictures, op
        assert all((site / picture).is_file() for picture in pictures), op
        assert "<td>(" in note, op


def test_every_stored_benchmark_is_drawn(site: Path) -> None:
    page = (site / "benchmarks.html").read_text()
    assert set(re.findall(r'src="(plots/[^"]+\.svg)"', page)) == {
        str(path.relative_to(site)) for path in (site / "plots").iterdir()
    }


def test_roles_and_stars_of_docstrings_are_not_shown(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        assert not re.search(r":(func|class|meth|mod):", page.read_text()), page
    assert "[N, C, *spatial]" in (site / "api" / "ops.html").read_text()
