"""Which images a step trains on, and with which random numbers they are augmented: functions of seed and step alone.

So a run that was stopped continues as if it had not been, in the middle of an epoch too, and neither the number of
reading processes nor that of ranks changes what the steps see.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Key = tuple[int, int]
"""Epoch and index of an item: what its augmentation depends on, besides the seed."""


@dataclass(frozen=True)
class Plan:
    """The batches of a training run.

    Each epoch is a permutation of its own, cut into batches; its last batch has what is left.

    Attributes:
        length: items of the dataset.
        batch_size: items of a step, over all ranks.
        seed: of the permutations.
    """

    length: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.length // self.batch_size)

    def batches(self, begin: int, end: int) -> Iterator[list[Key]]:
        """Those of steps begin .. end - 1, for all ranks."""
        step = begin
        while step < end:
            epoch, first = divmod(step, self.steps_per_epoch)
            generator = torch.Generator().manual_seed(_seed(self.seed, "order", epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
            last = min(self.steps_per_epoch, first + end - step)
            for i in range(first, last):
                yield [(epoch, index) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]
            step += last - first


class RankBatches(Sampler[list[Key]]):
    """The part of each batch that one rank reads: every `ranks`-th item.

    A rank whose part is empty, at the end of an epoch, reads the batch's first item in its place, since a network
    cannot be run without one; :meth:`real` tells how many items are to be counted.
    """

    def __init__(self, plan: Plan, begin: int, end: int, rank: int = 0, ranks: int = 1) -> None:
        self.plan, self.begin, self.end = plan, begin, end
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.end - self.begin

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.plan.batches(self.begin, self.end):
            yield batch[self.rank :: self.ranks] or batch[:1]

    def real(self, step: int) -> int:
        """How many of a step's items belong to this rank: 0 where it has a stand-in."""
        batch = min(self.plan.batch_size, self.plan.length - step % self.plan.steps_per_epoch * self.plan.batch_size)
        return len(range(self.rank, batch, self.ranks))


class SeededItems(Dataset[tuple[Tensor, Tensor]]):
    """Items of a dataset by (epoch, index), each read and augmented with random numbers of its own.

    Args:
        dataset: of (image, mask).
        transform: of an image and a mask; it draws from torch's generator, as torchvision's do, or from Python's. Both
            are as they were afterwards.
        seed: of the random numbers.
    """

    def __init__(self, dataset: Any, transform: Callable[..., Any], seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        before = random.getstate()
        with torch.random.fork_rng(devices=[]):
            seed = _seed(self.seed, "item", *key)
            torch.manual_seed(seed)
            random.seed(seed)
            try:
                return self.transform(*self.dataset[key[1]])
            finally:
                random.setstate(before)


def _seed(*parts: Any) -> int:
    # A string seed goes through SHA-512: unrelated streams for neighbouring items, the same in every process.
    return random.Random("/".join(map(str, parts))).getrandbits(63)
