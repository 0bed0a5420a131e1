"""dice_bce_loss: what is refused, and with which words; bad labels; transforms."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from tests.cases import make_logits
from tests.ops.dice_bce_loss_eager import make_target

SHAPE = (2, 3, 4, 5)
OTHER = torch.ones(2, 3, 4, 5)


def call(device: str, **change: Any) -> Any:
    arguments: dict[str, Any] = {
        "logits": torch.zeros(SHAPE, device=device),
        "target": torch.zeros(SHAPE, dtype=torch.uint8, device=device),
    }
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in change.items()}
    return segops.dice_bce_loss(**arguments | moved)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (TypeError, {"logits": [0.0]}, "logits must be a tensor, got list"),
        (TypeError, {"target": None}, "target must be a tensor, got NoneType"),
        (TypeError, {"logits": OTHER.int()}, "logits must be float32, float64, bfloat16 or float16, got int32"),
        (TypeError, {"target": OTHER.long()}, "target must be bool, uint8 or floating point, got int64"),
        (TypeError, {"target": OTHER.to(torch.int8)}, "target must be bool, uint8 or floating point, got int8"),
        (TypeError, {"logits": OTHER.to_sparse()}, "logits must be a dense tensor, got torch.sparse_coo"),
        (TypeError, {"target": OTHER.to_sparse()}, "target must be a dense tensor, got torch.sparse_coo"),
        (TypeError, {"pos_weight": torch.ones(3).to_sparse()}, "pos_weight must be a dense tensor, got torch.sparse"),
        (ValueError, {"logits": OTHER[0, 0]}, "logits must be [N, H, W] or [N, C, *spatial], got [4, 5]"),
        (ValueError, {"logits": OTHER[:, :0]}, "logits must have at least one channel, got [2, 0, 4, 5]"),
        (ValueError, {"target": OTHER[:, 0]}, "target must be [2, 3, 4, 5] like logits, got [2, 4, 5]"),
        (ValueError, {"target": OTHER[:, :1]}, "target must be [2, 3, 4, 5] like logits, got [2, 1, 4, 5] (coarse"),
        (ValueError, {"target": OTHER[:1]}, "target must be [2, 3, 4, 5] like logits, got [1, 3, 4, 5] (coarse"),
        (
            ValueError,
            {"logits": OTHER[..., None], "target": OTHER.repeat(1, 1, 1, 2)[..., None]},
            "target must be [2, 3, 4, 5, 1] like logits, got [2, 3, 4, 10, 1]",
        ),
        (ValueError, {"logits": OTHER[..., :0]}, "logits must have at least one pixel to be interpolated"),
        (ValueError, {"target": OTHER[..., :0]}, "target must have at least one pixel to be interpolated"),
        (ValueError, {"target": OTHER.clone().requires_grad_()}, "target must not require a gradient"),
        (TypeError, {"pos_weight": 2.0}, "pos_weight must be a tensor, got float"),
        (TypeError, {"pos_weight": torch.ones(3, dtype=torch.int32)}, "pos_weight must be floating point, got int32"),
        (ValueError, {"pos_weight": torch.ones(5)}, "pos_weight must be [3] or [3, 1, 1] or [1, 3, 1, 1], got [5]"),
        (ValueError, {"pos_weight": torch.ones(3).requires_grad_()}, "pos_weight must not require a gradient"),
        (
            ValueError,
            {"pixel_weight": torch.ones(2, 2, 4, 5)},
            "pixel_weight must be [2, 4, 5] or [2, 1, 4, 5] or [2, 3, 4, 5], got [2, 2, 4, 5]",
        ),
        (ValueError, {"pixel_weight": OTHER.clone().requires_grad_()}, "pixel_weight must not require a gradient"),
        (TypeError, {"ignore_index": 1.0}, "ignore_index must be an int, got float"),
        (ValueError, {"ignore_index": 1 << 63}, "ignore_index must be an int of 64 bits"),
        (TypeError, {"focal_gamma": "2"}, "focal_gamma must be a number, got str"),
        (ValueError, {"focal_gamma": -0.5}, "focal_gamma must be finite and >= 0, got -0.5"),
        (ValueError, {"focal_gamma": float("nan")}, "focal_gamma must be finite and >= 0, got nan"),
        (TypeError, {"bce_weight": None}, "bce_weight must be a number, got NoneType"),
        (ValueError, {"bce_weight": float("inf")}, "bce_weight must be finite, got inf"),
        (ValueError, {"dice_weight": float("nan")}, "dice_weight must be finite, got nan"),
        (ValueError, {"smooth": -1.0}, "smooth must be finite and >= 0, got -1.0"),
        (TypeError, {"batch_dice": 1}, "batch_dice must be a bool, got int"),
        (TypeError, {"squared": None}, "squared must be a bool, got NoneType"),
        (ValueError, {"overlap": "iou"}, 'overlap must be "dice", "jaccard" or ("tversky", alpha, beta), got \'iou\''),
        (ValueError, {"overlap": ("tversky", -1, 1)}, "tversky needs finite alpha, beta >= 0, got -1, 1"),
        (ValueError, {"reduction": "max"}, 'reduction must be "mean", "sum" or "none", got \'max\''),
        (ValueError, {"reduction": "none"}, 'dice_weight must be 0 with reduction="none"'),
        (
            ValueError,
            {"reduction": "none", "dice_weight": 0, "return_parts": True},
            'return_parts must be False with reduction="none"',
        ),
        (ValueError, {"validate": "yes"}, 'validate must be "raise", "count" or "off", got \'yes\''),
        (TypeError, {"process_group": 3}, "process_group must be a torch.distributed.ProcessGroup, got int"),
    ],
)
def test_what_is_refused(kind: type[Exception], change: dict[str, Any], words: str, device: str) -> None:
    with pytest.raises(kind, match="^" + re.escape(f"segops.dice_bce_loss: {words}")):
        call(device, **change)


def with_bad_labels(dtype: torch.dtype, values: list[float], device: str) -> Tensor:
    target = make_target(SHAPE, dtype, device=device)
    target[1, 0, 2, 3], target[1, 0, 3, 4], target[1, 2, 0, 0] = values
    return target


def test_a_bad_label_that_is_stored_negated(backend: str, device: str) -> None:
    """As the imaginary part of a conjugate is."""
    target = torch.full((2, 3, 4), 1.5j, dtype=torch.complex128, device=device).conj().imag

    def checked() -> None:
        segops.dice_bce_loss(torch.zeros(2, 3, 4, device=device), target, backend=backend)
        segops.check_errors()

    with pytest.raises(ValueError, match="24 label"):
        checked()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "values", "range_and_first"),
    [
        (torch.uint8, [2, 200, 7], ("{0, 1}", "2")),
        (torch.float32, [1.5, -0.5, 3.0], ("[0, 1]", "1.5")),
        (torch.float64, [float("nan"), 1.01, -1e300], ("[0, 1]", "nan")),
        (torch.bfloat16, [-0.25, float("inf"), 2.0], ("[0, 1]", "-0.25")),
        (torch.float16, [1.0625, -1.0, 9.0], ("[0, 1]", "1.0625")),
    ],
    ids=str,
)
def test_bad_labels(
    dtype: torch.dtype, values: list[float], range_and_first: tuple[str, str], layout: str, backend: str, device: str
) -> None:
    logits = make_logits(SHAPE, layout=layout, device=device)
    target = with_bad_labels(dtype, values, device)

    def checked(**options: Any) -> None:
        segops.dice_bce_loss(logits, target, backend=backend, **options)
        segops.check_errors()  # which a device's labels wait for

    expected, first = range_and_first
    words = f"segops.dice_bce_loss: target has 3 labels outside {expected}; the first is {first} at [1, 0, 2, 3]"
    with pytest.raises(ValueError, match=re.escape(words) if device == "cpu" else "3 labels outside"):
        checked()
    with pytest.raises(ValueError, match="that are not ignore_index"):
        checked(ignore_index=255)
    segops.take_bad_data_count()
    counted = segops.dice_bce_loss(logits, target, validate="count", backend=backend)
    assert segops.take_bad_data_count() == 3
    off = segops.dice_bce_loss(logits, target, validate="off", backend=backend)
    assert segops.take_bad_data_count() == 0
    ignored = with_bad_labels(dtype, [255.0] * 3, device)
    expected_loss = segops.dice_bce_loss(logits, ignored, ignore_index=255, backend=backend)
    assert torch.equal(counted, expected_loss)
    assert torch.equal(off, expected_loss)


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "label"),
    [
        (torch.bool, 255, True),
        (torch.bool, 256, False),
        (torch.uint8, 257, 1),
        (torch.uint8, -255, 1),
        (torch.uint8, -100, 156),
        (torch.bfloat16, 257, 256),
        (torch.float16, 70000, math.inf),
        (torch.float32, (1 << 24) + 1, 1 << 24),
        (torch.float64, (1 << 53) + 1, 1 << 53),
    ],
    ids=str,
)
def test_ignore_index_that_a_dtype_does_not_have(
    dtype: torch.dtype, ignore_index: int, label: float, backend: str, device: str
) -> None:
    """Labels that are it but for rounding, or modulo 256: those of one count, others are bad."""
    logits, target = make_logits(SHAPE, device=device), make_target(SHAPE, device=device).to(dtype)
    target[0, 0, 0, 0] = label
    segops.take_bad_data_count()
    options = {"validate": "count", "return_parts": True, "backend": backend}
    without = segops.dice_bce_loss(logits, target, **options)
    bad = segops.take_bad_data_count()
    assert bad == (label not in (0, 1))
    loss = segops.dice_bce_loss(logits, target, ignore_index=ignore_index, **options)
    assert segops.take_bad_data_count() == bad
    assert torch.equal(loss[0], without[0])
    assert torch.equal(loss[1].scores, without[1].scores)


def test_gradient_goes_to_the_logits_alone(backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, device=device), make_target(SHAPE, device=device)
    assert not segops.dice_bce_loss(logits, target, backend=backend).requires_grad
    loss, parts = segops.dice_bce_loss(logits.requires_grad_(), target, return_parts=True, backend=backend)
    assert loss.requires_grad
    assert not any(part.requires_grad for part in parts)
    before = logits.detach().clone()
    loss.backward()
    assert torch.equal(logits, before)


def test_transforms_of_functions_are_refused(kernel_backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, device=device), make_target(SHAPE, device=device)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: segops.dice_bce_loss(x, target, backend=kernel_backend))(logits)
