"""dice_ce_loss on a CUDA device: what neither the host execution nor the interpreter has, like streams and graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import segops
from tests.cases import make_logits, random_labels

C = 5


@pytest.fixture(autouse=True)
def _only_on_a_device(device: str) -> None:
    if device == "cpu":
        pytest.skip("streams and graphs are a device's: run with --device cuda")


def inputs(device: str = "cuda") -> tuple[Tensor, Tensor]:
    return make_logits((2, C, 64, 33), device=device), random_labels((2, 64, 33), C, device=device)


def gradient(logits: Tensor, target: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    x = logits.detach().requires_grad_()
    loss = segops.dice_ce_loss(x, target, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def test_captured_graph(kernel_backend: str) -> None:
    """Replayed on other data; bad labels of a replay are told by check_errors."""
    logits, target = inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradient(logits, target, kernel_backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient(logits, target, kernel_backend)
    logits.copy_(logits.flip(0) * 2)
    graph.replay()
    for ours, eager in zip(captured, gradient(logits, target, kernel_backend), strict=True):
        assert torch.equal(ours, eager)
    segops.check_errors()
    target[1, 2, 3] = 77
    graph.replay()
    with pytest.raises(ValueError, match=r"1 label.* the first is 77 at flat position"):
        segops.check_errors()
    segops.check_errors()


def test_side_stream(kernel_backend: str) -> None:
    logits, target = inputs()
    expected = gradient(logits, target, kernel_backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        late = logits.clone()
        found = gradient(late, target, kernel_backend)
    torch.cuda.current_stream().wait_stream(side)
    for ours, same in zip(found, expected, strict=True):
        assert torch.equal(ours, same)


def test_nothing_waits_for_the_device(kernel_backend: str) -> None:
    logits, target = inputs()
    gradient(logits, target, kernel_backend)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    asleep = torch.cuda.Event()
    asleep.record()
    gradient(logits, target, kernel_backend)
    assert not asleep.query(), "the call came back after the device had done what was queued before it"


def test_default_device(kernel_backend: str) -> None:
    logits, target = inputs()
    with torch.device("cuda"):
        gradient(logits, target, kernel_backend)
        segops.check_errors()


def test_other_device(kernel_backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    expected = gradient(*inputs("cuda:0"), kernel_backend)
    found = gradient(*inputs("cuda:1"), kernel_backend)
    for ours, same in zip(found, expected, strict=True):
        assert ours.device.index == 1
        assert torch.equal(ours.cpu(), same.cpu())


def test_tensors_of_two_devices_are_refused_by_the_operator(kernel_backend: str) -> None:
    """An exported program has no other check."""
    if kernel_backend != "native":
        pytest.skip("the check of the binding")
    logits, target = inputs()
    options = (None, None, -100, 0.0, False, True, False, False, 0)
    for arguments in ((logits, target.cpu()), (logits.cpu(), target)):
        with pytest.raises(RuntimeError, match="must be on the device"):
            torch.ops.segops.dice_ce_loss_statistics(*arguments, *options)
