"""dice_ce_loss with a process group: two or three ranks with parts of a batch are one rank with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import segops
from tests.cases import make_logits, random_labels
from tests.ops.loss_ranks import PARTS, assert_map_has_no_group, assert_ranks_equal, loss_and_gradient, part
from tests.ranks import joined, needs_gloo, results_of

pytestmark = needs_gloo

CLASSES = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"batch_dice": True},
    "skip absent": {"absent_classes": "skip", "ignore_index": 2},
    "skip absent, batch, no background": {"absent_classes": "skip", "batch_dice": True, "include_background": False},
    "weights": {"weight": torch.arange(1.0, 1 + CLASSES), "dice_class_weight": torch.arange(0.5, CLASSES)},
    "sum": {"reduction": "sum", "label_smoothing": 0.1, "squared": True, "overlap": "jaccard"},
    "only cross-entropy": {"dice_weight": 0.0, "ignore_index": 1},
    "only overlap": {"ce_weight": 0.0, "overlap": ("tversky", 0.3, 0.7), "include_background": False},
    "coarse": {"align_corners": True, "label_smoothing": 0.1},
}


def batch(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    target = random_labels((images, 11, 13), CLASSES)
    target[0][target[0] == 3] = 0  # a class that one image does not have
    return make_logits((images, CLASSES, 11, 13), dtype=torch.float64), target


def run_rank(rank: int, ranks: int, backends: tuple[str, ...]) -> dict[Any, Any]:
    """One rank's part of the batch, with each backend and set of options."""
    loss, group = segops.dice_ce_loss, dist.group.WORLD
    own = part(batch(sum(PARTS[ranks])), rank, ranks)
    results: dict[Any, Any] = {}
    for backend in backends:
        for name, options in OPTIONS.items():
            results[backend, name] = loss_and_gradient(loss, *own, backend=backend, process_group=group, **options)
    results["parallel"] = parallel_step(rank, ranks, group)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results["compiled"] = compiled(*own, process_group=group, backend="native")
    return results


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Conv2d(3, CLASSES, 3, padding=1, dtype=torch.float64)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return make_logits((4, 3, 9, 7), dtype=torch.float64, seed=5), random_labels((4, 9, 7), CLASSES, seed=6)


def parallel_step(rank: int, ranks: int, group: Any) -> list[torch.Tensor]:
    """The gradients that DistributedDataParallel leaves after unequal parts: the last rank has the more images."""
    model = torch.nn.parallel.DistributedDataParallel(network())
    images, target = (t.split((1, 3) if ranks == 2 else (1, 1, 2))[rank] for t in pictures())
    segops.dice_ce_loss(model(images), target, process_group=group).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.fixture(scope="module", params=sorted(PARTS))
def ranks_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return results_of(request.param, folder, run_rank, segops.backends.available("cpu"))


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_equal_one_rank_with_the_whole_batch(ranks_results, name):
    whole, options = batch(sum(PARTS[len(ranks_results)])), OPTIONS[name]
    expected = loss_and_gradient(segops.dice_ce_loss, *whole, backend="native", **options)
    assert_ranks_equal(ranks_results, name, expected, batch="batch_dice" in options)


def test_parallel_training_has_the_gradient_of_the_whole_batch(ranks_results):
    images, target = pictures()
    model = network()
    segops.dice_ce_loss(model(images), target).backward()
    for result in ranks_results:
        for got, parameter in zip(result["parallel"], model.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-11, atol=1e-13)


def test_compiled_graph_holds_the_collective(ranks_results):
    for result in ranks_results:
        torch.testing.assert_close(result["compiled"], result["native", "default"]["loss"], rtol=1e-12, atol=0)


def test_map_has_no_group(tmp_path):
    with joined(tmp_path):
        assert_map_has_no_group(segops.dice_ce_loss, *batch(2))
