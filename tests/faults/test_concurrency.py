"""Operators and autograd in many threads at once, and in the worker processes of a DataLoader."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import segops
from tests.cases import make_logits, random_labels
from tests.faults.check import Answer, answer
from tests.faults.draw import FUNCTIONS, Call, calls

THREADS = 8


def _same(a: Answer, b: Answer) -> bool:
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b) and str(a) == str(b)
    return len(a) == len(b) and all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(a, b, strict=True))


@settings(max_examples=8)
@given(st.tuples(*(calls(name) for name in FUNCTIONS)))
def test_every_function_in_many_threads(drawn: tuple[Call, ...]) -> None:
    drawn = tuple(call for call in drawn if not call.broken)
    expected = [answer(call, "native", True) for call in drawn]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda call: answer(call, "native", True), drawn * 3))
    assert all(map(_same, found, expected * 3))


class Network(nn.Module):
    """What remembers how to compute its activations once more, for the threads to remember side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = segops.nn.ConvNormAct(3, 8, 3, padding=1)
        self.second = segops.nn.ConvNormAct(8, 8, 3, padding=2, dilation=2, activation="silu")
        self.third = segops.nn.ConvNormAct(24, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        pooled, indices = segops.max_pool2d(skip, 2)
        deep = self.second(pooled)
        unpooled = segops.max_unpool2d(deep, indices, 2)
        return self.third(torch.cat([segops.upsample_cat(deep, skip), unpooled], 1))


def _trained(_: object) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):  # no thread draws from the generator after this
        model = Network()
    state = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.copy_(torch.rand(parameter.shape, generator=state) - 0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, target = torch.rand(2, 3, 32, 48, generator=state), torch.randint(0, 5, (2, 64, 96), generator=state)
    for _ in range(4):
        optimizer.zero_grad()
        segops.dice_ce_loss(model(x), target).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_training_in_many_threads() -> None:
    expected = _trained(None)
    assert all(bool(torch.isfinite(x).all()) for x in expected)
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(_trained, range(2 * THREADS)):
            assert all(map(torch.equal, found, expected))


class Computed(Dataset):
    """Samples that operators make, autograd among them."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> list[Tensor]:
        logits = make_logits((1, 5, 24, 40)).roll(i).requires_grad_()
        target = random_labels((1, 96, 160), 5).roll(i)
        loss = segops.dice_ce_loss(logits, target)
        loss.backward()
        labels = segops.upsample_argmax(logits, (96, 160))
        return [
            loss.detach(),
            logits.grad,
            labels,
            segops.confusion_matrix(labels, target, 5),
            *segops.max_pool2d(logits.detach(), 2),
            segops.dilated_conv2d(logits.detach(), make_logits((8, 5, 3, 3)), padding=2, dilation=2),
        ]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes(context: str) -> None:
    """Forked ones come from a process whose threads are there already; they have none of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        data = Computed()
        expected = [data[i] for i in range(len(data))]
        found = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=100)
        for ours, theirs in zip(found, expected, strict=True):
            assert all(map(torch.equal, ours, theirs))
    finally:
        torch.set_num_threads(threads)
