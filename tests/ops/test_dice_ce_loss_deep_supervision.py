"""deep_supervision_loss is the weighted sum of dice_ce_loss over heads."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from tests.cases import make_logits, random_labels
from tests.ops import dice_bce_loss_eager
from tests.ops.dice_ce_loss_coarse_cases import coarse_eager
from tests.ops.dice_ce_loss_eager import eager

SIZE = (24, 31)
HEADS = ((24, 31), (12, 16), (5, 7), (1, 1))
WEIGHTS = (1.0, 0.5, -0.25, 2)


def heads_and_target(device: str, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    heads = [make_logits((2, 4, *size), dtype, seed=i, device=device) for i, size in enumerate(HEADS)]
    return [head.requires_grad_() for head in heads], random_labels((2, *SIZE), 4, ignore_index=-100, device=device)


@pytest.mark.parametrize("options", [{}, {"batch_dice": True, "label_smoothing": 0.1}], ids=["plain", "options"])
def test_is_the_weighted_sum_and_so_are_its_gradients(options: dict[str, Any], backend: str, device: str) -> None:
    heads, target = heads_and_target(device)
    loss = segops.deep_supervision_loss(heads, target, WEIGHTS, backend=backend, **options)
    losses = [eager(heads[0], target, **options), *(coarse_eager(head, target, **options) for head in heads[1:])]
    expected = sum(weight * one for weight, one in zip(WEIGHTS, losses, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, heads), torch.autograd.grad(expected, heads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("flat", [False, True])
def test_binary_heads(flat: bool, backend: str, device: str) -> None:
    """Lists of saliency maps, each with one channel or none."""
    heads, _ = heads_and_target(device)
    heads = [head[:, 0].detach().requires_grad_() if flat else head for head in heads]
    target = dice_bce_loss_eager.make_target((2, *SIZE) if flat else (2, 4, *SIZE), device=device)
    options: dict[str, Any] = {"focal_gamma": 1.0, "batch_dice": True}
    loss = segops.deep_supervision_loss(heads, target, WEIGHTS, loss="dice_bce", backend=backend, **options)
    losses = [dice_bce_loss_eager.eager(head, target, **options) for head in heads]
    expected = sum(weight * one for weight, one in zip(WEIGHTS, losses, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, heads), torch.autograd.grad(expected, heads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    _, parts = segops.deep_supervision_loss(heads, target, WEIGHTS, loss="dice_bce", return_parts=True, backend=backend)
    assert [type(own).__name__ for own in parts] == ["DiceBCELossParts"] * len(heads)


def test_parts_and_maps(backend: str, device: str) -> None:
    heads, target = heads_and_target(device, torch.float32)
    loss, parts = segops.deep_supervision_loss(heads, target, (1, 0, 0.5, 0.25), return_parts=True, backend=backend)
    assert torch.equal(loss, segops.deep_supervision_loss(heads, target, (1, 0, 0.5, 0.25), backend=backend))
    for head, own in zip(heads, parts, strict=True):
        _, expected = segops.dice_ce_loss(head, target, return_parts=True, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
    grads = torch.autograd.grad(loss, heads, allow_unused=True)
    assert [g is None for g in grads] == [False, True, False, False]
    options: dict[str, Any] = {"reduction": "none", "dice_weight": 0.0, "backend": backend}
    maps = segops.deep_supervision_loss(heads, target, WEIGHTS, **options)
    assert maps.shape == target.shape
    expected_map = sum(w * segops.dice_ce_loss(h, target, **options) for w, h in zip(WEIGHTS, heads, strict=True))
    torch.testing.assert_close(maps, expected_map)


def test_labels_are_checked_once(backend: str, device: str) -> None:
    heads, target = heads_and_target(device)
    target[1, 2, 3] = 7
    segops.take_bad_data_count()
    loss = segops.deep_supervision_loss(heads, target, WEIGHTS, validate="count", backend=backend)
    assert segops.take_bad_data_count() == 1
    ignored = torch.where(target == 7, -100, target)
    assert torch.equal(loss, segops.deep_supervision_loss(heads, ignored, WEIGHTS, backend=backend))

    def checked() -> None:
        segops.deep_supervision_loss(heads, target, (0, *WEIGHTS[1:]), backend=backend)
        segops.check_errors()  # which a device's labels wait for

    with pytest.raises(ValueError, match="1 label outside"):
        checked()


def test_compiles_into_one_graph(device: str) -> None:
    heads, target = heads_and_target(device)
    compiled = torch.compile(segops.deep_supervision_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(heads, target, WEIGHTS), segops.deep_supervision_loss(heads, target, WEIGHTS))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (TypeError, {"logits": torch.zeros(2, 4, 3, 3)}, "logits must be a list or tuple, got Tensor"),
        (TypeError, {"weights": 1.0}, "weights must be a list or tuple, got float"),
        (ValueError, {"weights": (1.0,)}, "weights must have one number for each of 4 logits, got 1"),
        (TypeError, {"logits": (None,), "weights": (1,)}, "logits[0] must be a tensor, got NoneType"),
        (TypeError, {"weights": (1, 1, 1, "1")}, "weights[3] must be a number, got str"),
        (ValueError, {"weights": (1, float("nan"), 1, 1)}, "weights[1] must be finite, got nan"),
        (ValueError, {"weights": (0, 0.0, 0, 0)}, "weights must not all be zero, got [0, 0.0, 0, 0]"),
        (ValueError, {"loss": "ce"}, 'loss must be "dice_ce" or "dice_bce", got \'ce\''),
        (ValueError, {"logits": (), "weights": ()}, "weights must not all be zero, got []"),
        (
            ValueError,
            {"logits": [torch.zeros(2, 4, 3, 3), torch.zeros(2, 5, 3, 3)], "weights": (1, 1)},
            "logits[1] must be [2, 4] in its first two dimensions like logits[0], got [2, 5, 3, 3]",
        ),
    ],
)
def test_bad_lists(kind: type[Exception], change: dict[str, Any], words: str, device: str) -> None:
    heads, target = heads_and_target(device)
    arguments: dict[str, Any] = {"logits": heads, "target": target, "weights": WEIGHTS}
    with pytest.raises(kind, match="^" + re.escape(f"segops.deep_supervision_loss: {words}")):
        segops.deep_supervision_loss(**arguments | change)
