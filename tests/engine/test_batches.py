"""Which images a step sees: a function of the step, shared out to ranks without loss or repetition."""

from __future__ import annotations

import random

import pytest
import torch

from segops.engine.batches import Plan, RankBatches, SeededItems


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    plan = Plan(10, 4, seed=3)
    batches = list(plan.batches(0, 6))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    for epoch in (0, 1):
        keys = [key for batch in batches[3 * epoch : 3 * epoch + 3] for key in batch]
        assert {key[0] for key in keys} == {epoch}
        assert sorted(key[1] for key in keys) == list(range(10))
    assert [k[1] for k in batches[0]] != [k[1] for k in batches[3]]
    assert batches != list(Plan(10, 4, seed=4).batches(0, 6))


@pytest.mark.parametrize("begin", range(7))
def test_a_continuation_sees_what_is_left(begin: int) -> None:
    plan = Plan(10, 4, seed=0)
    assert list(plan.batches(begin, 7)) == list(plan.batches(0, 7))[begin:]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_each_batch(ranks: int) -> None:
    plan = Plan(9, 4, seed=0)  # the last batch of an epoch has one item
    samplers = [RankBatches(plan, 1, 6, rank, ranks) for rank in range(ranks)]
    for step, parts in enumerate(zip(*samplers, strict=True), start=1):
        real = [part[: sampler.real(step)] for part, sampler in zip(parts, samplers, strict=True)]
        whole = next(plan.batches(step, step + 1))
        assert sorted(key for part in real for key in part) == sorted(whole)
        assert all(parts)
        for part, own in zip(parts, real, strict=True):
            assert part == own or (not own and part == whole[:1])
    assert all(len(sampler) == 5 for sampler in samplers)


def test_augmentation_depends_on_the_item_alone() -> None:
    def transform(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image + torch.rand(()), mask + random.randrange(1 << 20)

    data = [(torch.zeros(1), torch.zeros(1)) for _ in range(3)]
    items = SeededItems(data, transform, seed=1)
    before = torch.get_rng_state(), random.getstate()
    first = items[0, 2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.rand(3)
    assert items[0, 2] == first
    others = [items[1, 2], items[0, 1], SeededItems(data, transform, seed=2)[0, 2]]
    assert len({float(image) for image, _ in [first, *others]}) == 4
    assert len({float(mask) for _, mask in [first, *others]}) == 4
