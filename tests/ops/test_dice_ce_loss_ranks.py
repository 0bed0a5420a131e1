"""dice_ce_loss with a process group: two or three ranks with parts of a batch are one rank with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import segops
from tests.cases import make_logits, random_labels
from tests.ranks import joined, needs_gloo, results_of

pytestmark = needs_gloo

CLASSES = 5
#: Images of each rank; the parts are unequal, and one may be empty.
PARTS = {2: (1, 3), 3: (2, 0, 1)}
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


def loss_and_gradient(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    if "align_corners" in options:
        logits = logits[:, :, ::3, ::2]
    logits = logits.clone().requires_grad_()
    loss, parts = segops.dice_ce_loss(logits, target, return_parts=True, **options)
    loss.backward()
    assert logits.grad is not None
    return {"loss": loss.detach(), "ce": parts.ce, "dice": parts.dice, "grad": logits.grad, "scores": parts.scores}


def run_rank(rank: int, ranks: int, backends: tuple[str, ...]) -> dict[Any, Any]:
    """One rank's part of the batch, with each backend and set of options."""
    group = dist.group.WORLD
    parts = PARTS[ranks]
    logits, target = (t.split(parts)[rank] for t in batch(sum(parts)))
    results: dict[Any, Any] = {}
    for backend in backends:
        for name, options in OPTIONS.items():
            results[backend, name] = loss_and_gradient(logits, target, backend=backend, process_group=group, **options)
    results["parallel"] = parallel_step(rank, ranks, group)
    results["compiled"] = torch.compile(segops.dice_ce_loss, fullgraph=True, backend="aot_eager")(
        logits, target, process_group=group, backend="native"
    )
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
    ranks = len(ranks_results)
    logits, target = batch(sum(PARTS[ranks]))
    expected = loss_and_gradient(logits, target, backend="native", **OPTIONS[name])
    backends = {key[0] for key in ranks_results[0] if isinstance(key, tuple)}
    assert {"native", "reference"} <= backends
    for backend in backends:
        if (backend, name) not in ranks_results[0]:
            continue
        results = [result[backend, name] for result in ranks_results]
        for result in results:
            for value in ("loss", "ce", "dice"):
                torch.testing.assert_close(result[value], expected[value], rtol=1e-12, atol=1e-12, equal_nan=True)
            if OPTIONS[name].get("batch_dice"):
                torch.testing.assert_close(result["scores"], expected["scores"], rtol=1e-12, atol=1e-12)
        # A rank's gradient is larger by the number of ranks, which the mean over ranks takes away.
        grad = torch.cat([result["grad"] for result in results]) / ranks
        torch.testing.assert_close(grad, expected["grad"], rtol=1e-11, atol=1e-13)


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
        logits, target = batch(2)
        with pytest.raises(ValueError, match='process_group must be None with reduction="none"'):
            segops.dice_ce_loss(logits, target, reduction="none", dice_weight=0, process_group=dist.group.WORLD)
        alone = segops.dice_ce_loss(logits, target, process_group=dist.group.WORLD)
        torch.testing.assert_close(alone, segops.dice_ce_loss(logits, target), rtol=1e-13, atol=0)
