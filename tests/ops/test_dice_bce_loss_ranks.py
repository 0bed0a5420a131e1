"""dice_bce_loss with a process group: two or three ranks with parts of a batch are one rank with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import segops
from tests.cases import make_logits
from tests.ops.dice_bce_loss_eager import make_target
from tests.ops.loss_ranks import PARTS, assert_map_has_no_group, assert_ranks_equal, loss_and_gradient, part
from tests.ranks import joined, needs_gloo, results_of

pytestmark = needs_gloo

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"batch_dice": True, "ignore_index": 255},
    "weights": {"pos_weight": torch.tensor([0.5, 2.0, 1.0]), "ignore_index": 255, "focal_gamma": 1.5},
    "sum": {"reduction": "sum", "squared": True, "overlap": "jaccard", "ignore_index": 255},
    "only cross-entropy": {"dice_weight": 0.0, "ignore_index": 255},
    "only overlap": {"bce_weight": 0.0, "overlap": ("tversky", 0.3, 0.7), "ignore_index": 255},
    "coarse": {"align_corners": True, "ignore_index": 255},
}


def batch(images: int, ignore_index: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (images, 3, 11, 13)
    return make_logits(shape, dtype=torch.float64), make_target(shape, torch.float32, ignore_index)


def run_rank(rank: int, ranks: int, backends: tuple[str, ...]) -> dict[Any, Any]:
    """One rank's part of the batch, with each backend and set of options."""
    loss, group, images = segops.dice_bce_loss, dist.group.WORLD, sum(PARTS[ranks])
    results: dict[Any, Any] = {}
    for name, options in OPTIONS.items():
        own = part(batch(images, options.get("ignore_index")), rank, ranks)
        for backend in backends:
            results[backend, name] = loss_and_gradient(loss, *own, backend=backend, process_group=group, **options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results["compiled"] = compiled(*part(batch(images, None), rank, ranks), process_group=group, backend="native")
    return results


@pytest.fixture(scope="module", params=sorted(PARTS))
def ranks_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return results_of(request.param, folder, run_rank, segops.backends.available("cpu"))


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_equal_one_rank_with_the_whole_batch(ranks_results, name):
    options = OPTIONS[name]
    whole = batch(sum(PARTS[len(ranks_results)]), options.get("ignore_index"))
    expected = loss_and_gradient(segops.dice_bce_loss, *whole, backend="native", **options)
    assert_ranks_equal(ranks_results, name, expected, batch="batch_dice" in options)


def test_compiled_graph_holds_the_collective(ranks_results):
    for result in ranks_results:
        torch.testing.assert_close(result["compiled"], result["native", "default"]["loss"], rtol=1e-12, atol=0)


def test_map_has_no_group(tmp_path):
    with joined(tmp_path):
        assert_map_has_no_group(segops.dice_bce_loss, *batch(2, None))
