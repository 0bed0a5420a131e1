"""How the tests of one run are shared out to workers (pytest-xdist, `--dist loadscope`): a unit at a time.

A unit is a test function with all its cases, so that few messages are needed and what a file's fixtures make is made
for a handful of functions. Whatever several workers need, but only one may make, is behind a lock
(tests.simt.build.built_once).
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

#: Files whose tests share what takes long to make and lives in one process: these are one unit, by its name.
TOGETHER = {
    "tests/engine/test_demo.py": "demo",
    "tests/engine/test_cli.py": "command line",
    "tests/test_benchmarks.py": "benchmarks",
    "tests/docs/test_site.py": "site",
    "tests/test_packaging.py": "packaging",
    "tests/ops/test_dice_bce_loss_ranks.py": "binary ranks",
    "tests/ops/test_dice_ce_loss_ranks.py": "ranks",
    "tests/metrics/test_ranks.py": "ranks of metrics",
    "tests/ladder/test_sass.py": "sass",
    "tests/triton/test_dice_ce_loss_sass.py": "sass",
}
#: Where one case can take as long as other tests' functions: each is a unit.
BY_CASE = ("tests/ladder/",)


def unit_of(nodeid: str) -> str:
    file, _, test = nodeid.partition("::")
    if file in TOGETHER:
        return TOGETHER[file]
    return nodeid if file.startswith(BY_CASE) else f"{file}::{test.partition('[')[0]}"


class Units(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
