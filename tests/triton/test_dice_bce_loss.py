"""The Triton kernels of dice_bce_loss in the interpreter, against the reference in float64.

What the tests of the operator leave to others: planes and channels that are cut into several tiles and programs, and
where the first bad label lies among them.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from segops import errors
from segops.reference import dice_bce_loss as reference
from segops.triton import dice_bce_loss as op
from segops.triton import interpreting
from tests.cases import make_logits
from tests.tolerances import compare

pytestmark = pytest.mark.skipif(not interpreting(), reason="kernels are compiled: they need CUDA tensors")

#: Both have ignored elements.
WEIGHTS: dict[str, Any] = {"ignore_index": 255, "focal_gamma": 0.7, "squared": True}


def labels(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8, seed: int = 3) -> Tensor:
    """A tenth of them is 255."""
    generator = torch.Generator().manual_seed(seed)
    soft = torch.rand(shape, generator=generator)
    target = soft.to(dtype) if dtype.is_floating_point else (soft * 2).to(dtype)
    target[torch.rand(shape, generator=generator) < 0.1] = 255
    return target


def check(logits: Tensor, target: Tensor, **options: Any) -> None:
    compare(
        functools.partial(segops.dice_bce_loss, target=target, backend="triton", **options),
        functools.partial(segops.dice_bce_loss, target=target, backend="reference", **options),
        logits,
        gradient_scale=1 / max(1, target.numel()),
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "pixels"), [(1, 1), (1, 4097), (3, 1100), (17, 300), (64, 33), (65, 17), (130, 40), (300, 2)]
)
def test_tiles(channels: int, pixels: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full and partial ones in both directions; a program takes one of them, or up to eight."""
    target = labels((2, channels, pixels, 1))
    for enough in (1, 1 << 30):
        monkeypatch.setattr(op, "_ENOUGH_PROGRAMS", enough)
        logits = make_logits((2, channels, pixels, 1), layout=layout)
        check(logits, target, **WEIGHTS if enough == 1 else {"ignore_index": 255})


def test_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cases above rely on: several steps, several programs of a plane, several blocks of channels."""
    monkeypatch.setattr(op, "_ENOUGH_PROGRAMS", 1)
    planar, across = op.plan((2, 3, 1100), False), op.plan((2, 130, 40), True)
    assert planar == op.Plan(block_c=1, block_p=1024, blocks_c=3, chunks=1, steps=2)
    assert across == op.Plan(block_c=64, block_p=8, blocks_c=3, chunks=1, steps=5)
    assert op.plan((1, 1, 9 * 1024), False).chunks == 2
    assert op.plan((1, 1, 1), False).block_p == 16
    assert op.plan((8, 1, 1 << 20), False).steps == 8


@pytest.mark.parametrize("target_layout", ["contiguous", "channels_last", "expanded", "channels_last_crop"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "channels_last_channel_slice"])
def test_layouts_mixed(layout: str, target_layout: str) -> None:
    shape = (2, 5, 7, 9)
    logits, target = make_logits(shape, torch.bfloat16, layout), make_logits(shape, layout=target_layout).sigmoid()
    weight = make_logits(shape, torch.float32, target_layout, seed=4).abs()
    check(logits, target, pixel_weight=weight, pos_weight=torch.tensor([0.5, 1, 2, 3, 4]))


@pytest.mark.parametrize(("layout", "enough"), [("contiguous", 1), ("channels_last", 1), ("channels_last", 1 << 30)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64], ids=str)
def test_the_first_bad_label(dtype: torch.dtype, layout: str, enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """First in row-major order, whatever the layout and the cut; and it is left out."""
    monkeypatch.setattr(op, "_ENOUGH_PROGRAMS", enough)
    shape = (2, 70, 53, 1)
    logits, target = make_logits(shape, layout=layout), labels(shape, dtype)
    clean = target.clone()
    for position, label in (((1, 69, 52), 9), ((1, 3, 50), 2.5), ((1, 68, 0), 2), ((1, 3, 51), 8), ((0, 0, 0), 255)):
        target[position], clean[position] = label, 255
    if dtype == torch.float64:
        target[1, 69, 52] = float("nan")
    if layout == "channels_last":
        target = target.movedim(1, -1).contiguous().movedim(-1, 1)
    found = op.statistics(logits, target, None, None, 255, 0.0, False, True, True, errors.RECORD)
    expected = op.statistics(logits, clean, None, None, 255, 0.0, False, True, True, errors.RECORD)
    first = struct.unpack("q", struct.pack("d", 2.5))[0] if dtype.is_floating_point else 2
    assert found[3].tolist() == [4, (70 + 3) * 53 + 50, first]
    assert expected[3].tolist() == [0, 0, 0]
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a, b)
    errors.take_bad_data_count()
    op.statistics(logits, target, None, None, 255, 0.0, False, True, False, errors.COUNT)
    assert errors.take_bad_data_count() == 4
    with pytest.raises(RuntimeError, match=r"target has 4 label.*255.*; the first is 2(\.5)? at .*50"):
        op.statistics(logits, target, None, None, 255, 0.0, False, True, False, errors.RAISE)


@pytest.mark.parametrize("align", [False, True])
def test_coarse_logits_of_several_programs(align: bool) -> None:
    """Rows wider than a tile, tiles of several rows, more channels than a tile, one coarse pixel read by very many."""
    sizes = (((1, 2, 9), (3, 600)), ((1, 9, 3), (23, 5)), ((19, 2, 3), (5, 7)), ((1, 1, 1), (37, 33)))
    for turn, ((c, h, w), size) in enumerate(sizes):
        dtype = torch.bfloat16 if turn % 2 == align else torch.float32
        check(make_logits((2, c, h, w), dtype), labels((2, c, *size)), align_corners=align, **WEIGHTS)


def test_16_bit_numbers_are_computed_with_in_float32() -> None:
    """Bit for bit the result of the same numbers in float32, rounded once."""
    logits, target = make_logits((2, 3, 5, 7), torch.bfloat16), labels((2, 3, 5, 7), torch.bfloat16)
    grad_overlap, grad_bce = torch.randn(2, 3, 3).double(), torch.randn(2).double()

    def results(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        bce_map = op.statistics(x, t, None, None, 255, 2.0, False, True, True, errors.RECORD)[2]
        return bce_map, op.backward(x, t, None, None, grad_overlap, grad_bce, 255, 2.0, False)

    (bce_map, grad), (single_map, single_grad) = results(logits, target), results(logits.float(), target.float())
    assert torch.equal(bce_map, single_map)
    assert torch.equal(grad, single_grad.to(torch.bfloat16))


def test_sums_do_not_depend_on_what_memory_held(poisoned_memory: None) -> None:
    for shape in ((2, 5, 9, 11), (2, 70, 1, 3)):
        logits, target = make_logits(shape), labels(shape)
        sums, bce, bce_map, bad = op.statistics(logits, target, None, None, 255, 0.0, False, True, True, errors.RECORD)
        truth = reference.overlap_sums(logits.double(), target, target != 255, False)
        torch.testing.assert_close(sums, torch.stack(truth, 1), rtol=1e-5, atol=1e-5)
        assert all(t.isfinite().all() for t in (bce, bce_map))
        assert bad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    logits, target = make_logits(shape), labels(shape)
    sums, bce, bce_map, bad = op.statistics(logits, target, None, None, None, 0.0, False, True, True, errors.RECORD)
    assert (sums.shape, bce_map.shape) == ((shape[0], 3, 2), shape)
    assert not any(t.any() for t in (sums, bce, bad))
    assert op.backward(logits, target, None, None, sums, bce, None, 0.0, False).shape == shape
