"""The kernel that counts common pixels against products of masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segops import _library
from segops.metrics import mask_overlaps as metric
from segops.ops.mask_overlaps import mask_overlaps
from tests.cpu import assert_threads_change_nothing, words_with_instruction_set

pytestmark = pytest.mark.skipif(_library.cpu_unavailable is not None, reason=f"native: {_library.cpu_unavailable}")

PIXELS = [1, 7, 64, 2047, 2048, 2049, 5000, 3 * 16384 + 5]


def masks_of(number: int, pixels: int, generator: torch.Generator) -> Tensor:
    """Random ones, full ones, and segments that leave most blocks empty."""
    masks = torch.rand(number, pixels, generator=generator) < 0.5
    masks[1::3] = True
    for mask in masks[2::3]:
        first, last = sorted(torch.randint(0, pixels + 1, (2,), generator=generator).tolist())
        mask[:first] = mask[last:] = False
    return masks


@pytest.mark.parametrize("pixels", PIXELS)
def test_kernel_equals_products(pixels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for detections, objects in ((0, 0), (0, 3), (4, 0), (1, 1), (9, 5), (70, 40)):
        masks = masks_of(detections, pixels, generator), masks_of(objects, pixels, generator)
        for found, expected in zip(mask_overlaps(*masks), metric.count_by_products(*masks), strict=True):
            assert torch.equal(found, expected)


def test_strides_and_bytes_of_masks() -> None:
    generator = torch.Generator().manual_seed(1)
    masks, objects = masks_of(6, 9000, generator), masks_of(4, 9000, generator)
    expected = metric.count_by_products(masks, objects)
    for some, others in (
        (masks.T.contiguous().T, objects.repeat_interleave(2, 1)[:, ::2]),
        ((masks.byte() * 7).view(torch.bool), (objects.byte() * 200).view(torch.bool)),
    ):
        for found, value in zip(mask_overlaps(some, others), expected, strict=True):
            assert torch.equal(found, value)


def test_threads_change_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    masks, objects = masks_of(9, 200_000, generator), masks_of(7, 200_000, generator)
    assert_threads_change_nothing(lambda: mask_overlaps(masks, objects), 1, 2, 5)
    for found, value in zip(mask_overlaps(masks, objects), metric.count_by_products(masks, objects), strict=True):
        assert torch.equal(found, value)


def test_the_backend_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    masks = masks_of(5, 600, generator).view(5, 20, 30), masks_of(4, 600, generator).view(4, 20, 30)
    crowd = torch.tensor([False, True, False, False])
    found = metric.overlaps(*masks, crowd)
    monkeypatch.setattr(metric, "mask_overlaps", None)
    monkeypatch.setenv("SEGOPS_BACKEND", "reference")
    for one, other in zip(found, metric.overlaps(*masks, crowd), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("level", _library.native.cpu_isas() if _library.native else [])
def test_every_instruction_set(level: str) -> None:
    assert words_with_instruction_set(level, "-m", "tests.metrics.test_mask_overlaps") == [level]


def test_opcheck() -> None:
    generator = torch.Generator().manual_seed(4)
    for number in (0, 3):
        masks = masks_of(number, 90, generator).byte(), masks_of(2, 90, generator).byte()
        torch.library.opcheck(torch.ops.segops.mask_overlaps.default, masks)


def test_the_binding_checks_what_memory_safety_needs() -> None:
    masks = torch.zeros(2, 6, dtype=torch.uint8)
    for arguments, message in (
        ((masks, masks[:, :5]), "masks must have as many pixels"),
        ((masks[0], masks), r"masks must be uint8 \[K, pixels\]"),
        ((masks, masks.int()), r"masks must be uint8 \[K, pixels\]"),
    ):
        with pytest.raises(RuntimeError, match=f"segops.mask_overlaps: {message}"):
            torch.ops.segops.mask_overlaps(*arguments)


if __name__ == "__main__":
    for size in PIXELS:
        test_kernel_equals_products(size)
    print(_library.native.cpu_isa() if _library.native else "")
