"""dice_bce_loss with a process group: two or three ranks with parts of a batch are one rank with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import segops
from tests.cases import make_logits
from tests.ops.dice_bce_loss_eager import make_target
from tests.ranks import joined, needs_gloo, results_of

pytestmark = needs_gloo

#: Images of each rank; the parts are unequal, and one may be empty.
PARTS = {2: (1, 3), 3: (2, 0, 1)}
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


def loss_and_gradient(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    if "align_corners" in options:
        logits = logits[:, :, ::3, ::2]
    logits = logits.clone().requires_grad_()
    loss, parts = segops.dice_bce_loss(logits, target, return_parts=True, **options)
    loss.backward()
    assert logits.grad is not None
    return {"loss": loss.detach(), "bce": parts.bce, "dice": parts.dice, "grad": logits.grad, "scores": parts.scores}


def run_rank(rank: int, ranks: int, backends: tuple[str, ...]) -> dict[Any, Any]:
    """One rank's part of the batch, with each backend and set of options."""
    group, parts = dist.group.WORLD, PARTS[ranks]
    results: dict[Any, Any] = {}
    for name, options in OPTIONS.items():
        logits, target = (t.split(parts)[rank] for t in batch(sum(parts), options.get("ignore_index")))
        for backend in backends:
            results[backend, name] = loss_and_gradient(logits, target, backend=backend, process_group=group, **options)
    logits, target = (t.split(parts)[rank] for t in batch(sum(parts), None))
    compiled = torch.compile(segops.dice_bce_loss, fullgraph=True, backend="aot_eager")
    results["compiled"] = compiled(logits, target, process_group=group, backend="native")
    return results


@pytest.fixture(scope="module", params=sorted(PARTS))
def ranks_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return results_of(request.param, folder, run_rank, segops.backends.available("cpu"))


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_equal_one_rank_with_the_whole_batch(ranks_results, name):
    ranks, options = len(ranks_results), OPTIONS[name]
    logits, target = batch(sum(PARTS[ranks]), options.get("ignore_index"))
    expected = loss_and_gradient(logits, target, backend="native", **options)
    backends = {key[0] for key in ranks_results[0] if isinstance(key, tuple)}
    assert {"native", "reference"} <= backends
    for backend in backends:
        results = [result[backend, name] for result in ranks_results]
        for result in results:
            for value in ("loss", "bce", "dice"):
                torch.testing.assert_close(result[value], expected[value], rtol=1e-12, atol=1e-12)
            if options.get("batch_dice"):
                torch.testing.assert_close(result["scores"], expected["scores"], rtol=1e-12, atol=1e-12)
        # A rank's gradient is larger by the number of ranks, which the mean over ranks takes away.
        grad = torch.cat([result["grad"] for result in results]) / ranks
        torch.testing.assert_close(grad, expected["grad"], rtol=1e-11, atol=1e-13)


def test_compiled_graph_holds_the_collective(ranks_results):
    for result in ranks_results:
        torch.testing.assert_close(result["compiled"], result["native", "default"]["loss"], rtol=1e-12, atol=0)


def test_map_has_no_group(tmp_path):
    with joined(tmp_path):
        logits, target = batch(2, None)
        with pytest.raises(ValueError, match='process_group must be None with reduction="none"'):
            segops.dice_bce_loss(logits, target, reduction="none", dice_weight=0, process_group=dist.group.WORLD)
        alone = segops.dice_bce_loss(logits, target, process_group=dist.group.WORLD)
        torch.testing.assert_close(alone, segops.dice_bce_loss(logits, target), rtol=1e-13, atol=0)
