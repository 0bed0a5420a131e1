"""Both losses with a process group: ranks with parts of a batch are one rank with all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

#: Images of each rank; the parts are unequal, and one may be empty.
PARTS = {2: (1, 3), 3: (2, 0, 1)}


def part(batch: tuple[Tensor, Tensor], rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    logits, target = (t.split(PARTS[ranks])[rank] for t in batch)
    return logits, target


def loss_and_gradient(loss: Callable[..., Any], logits: Tensor, target: Tensor, **options: Any) -> dict[str, Tensor]:
    """Of every third row and second column of the logits, with an option of coarse ones."""
    if "align_corners" in options:
        logits = logits[:, :, ::3, ::2]
    logits = logits.clone().requires_grad_()
    value, parts = loss(logits, target, return_parts=True, **options)
    (gradient,) = torch.autograd.grad(value, logits)
    return {"loss": value.detach(), "entropy": parts[0], "dice": parts.dice, "scores": parts.scores, "grad": gradient}


def assert_ranks_equal(
    ranks_results: list[dict[Any, Any]], name: str, expected: dict[str, Tensor], batch: bool
) -> None:
    """On every backend; `batch`: whether all images share their scores."""
    backends = {key[0] for key in ranks_results[0] if isinstance(key, tuple)}
    assert {"native", "reference"} <= backends
    for backend in backends:
        results = [result[backend, name] for result in ranks_results]
        for result in results:
            for value in ("loss", "entropy", "dice", *["scores"] * batch):
                torch.testing.assert_close(result[value], expected[value], rtol=1e-12, atol=1e-12)
        # A rank's gradient is larger by the number of ranks, which the mean over ranks takes away.
        grad = torch.cat([result["grad"] for result in results]) / len(results)
        torch.testing.assert_close(grad, expected["grad"], rtol=1e-11, atol=1e-13)


def assert_map_has_no_group(loss: Callable[..., Any], logits: Tensor, target: Tensor) -> None:
    """With a group of one rank, which changes nothing else."""
    with pytest.raises(ValueError, match='process_group must be None with reduction="none"'):
        loss(logits, target, reduction="none", dice_weight=0, process_group=dist.group.WORLD)
    alone = loss(logits, target, process_group=dist.group.WORLD)
    torch.testing.assert_close(alone, loss(logits, target), rtol=1e-13, atol=0)
