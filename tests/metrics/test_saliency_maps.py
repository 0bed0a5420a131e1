"""The kernel of saliency maps against the same in tensors, its distances against SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from segops import _library
from segops.metrics import functional
from segops.metrics.saliency_maps import Observed, observe, observe_tensors
from segops.ops.saliency_maps import FIELDS, REACH, saliency_maps
from tests.cpu import assert_threads_change_nothing, words_with_instruction_set

pytestmark = pytest.mark.skipif(_library.cpu_unavailable is not None, reason=f"native: {_library.cpu_unavailable}")

SHAPES = [(61, 83), (1, 1), (1, 2), (1, 200), (200, 1), (7, 128), (64, 64), (130, 129), (3, 700)]
DTYPES = [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPARSE = 0.002
MASKS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "empty": lambda shape, generator: torch.zeros(shape, dtype=torch.bool),
    "full": lambda shape, generator: torch.ones(shape, dtype=torch.bool),
    "noise": lambda shape, generator: torch.rand(shape, generator=generator) < 0.5,
    "sparse": lambda shape, generator: torch.rand(shape, generator=generator) < SPARSE,
    "first pixel": lambda shape, generator: one_pixel(shape, 0),
    "last pixel": lambda shape, generator: one_pixel(shape, -1),
    "last column": lambda shape, generator: (torch.arange(shape[-1]) == shape[-1] - 1).expand(shape),
    "last row": lambda shape, generator: (torch.arange(shape[-2]) == shape[-2] - 1)[:, None].expand(shape),
    "blob": lambda shape, generator: blob(shape, generator),
}


def one_pixel(shape: tuple[int, ...], at: int) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.flatten(1)[:, at] = True
    return mask


def blob(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    coarse = torch.rand((shape[0], 1, 4, 5), generator=generator)
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")[:, 0] > 0.5


def maps_of(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """The last of them has one value."""
    maps = torch.rand(shape, generator=generator).square()
    maps[-1] = 0.3
    return (maps * 200 + 17).to(dtype) if dtype == torch.uint8 else maps.to(dtype)


def check(found: Observed, expected: Observed) -> None:
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.shape == other.shape, name
        exact = name in ("bad", "pixels", "above", "counts", "first", "misses", "hits")
        torch.testing.assert_close(one, other, rtol=0 if exact else 1e-11, atol=0 if exact else 1e-12, msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("normalize", [True, False])
def test_kernel_equals_tensors(shape: tuple[int, int], kind: str, normalize: bool) -> None:
    for dtype in DTYPES:
        generator = torch.Generator().manual_seed(0)
        whole = (3, *shape)
        maps, masks = maps_of(whole, dtype, generator), MASKS[kind](whole, generator)
        found, expected = observe(maps, masks, normalize), observe_tensors(maps, masks, normalize)
        check(found, expected)
        # Of a block of one value exactly 0: the S-measure has a jump there.
        assert not found.total[-1].any()
        assert not found.square[-1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_bytes_of_masks(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    maps, masks = maps_of((4, 30, 46), dtype, generator), blob((4, 30, 46), generator)
    expected = observe_tensors(maps, masks, True)
    for spread in (lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(2, -1)[..., ::2]):
        check(observe(spread(maps), spread(masks), True), expected)
    check(observe(maps, (masks.byte() * 7).view(torch.bool), True), expected)
    nothing = Observed(**{name: torch.zeros(0, *shape, dtype=torch.float64) for name, shape in FIELDS.items()})
    check(observe(maps[:0], masks[:0], True), nothing)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_values_outside_are_told_by_map(dtype: torch.dtype, normalize: bool) -> None:
    size = 61 * 83
    for wrong in (-1e-3, 1.01, torch.nan, torch.inf, -torch.inf, 1e30 if dtype != torch.float16 else 6e4):
        for at in (0, 1, size // 2, size - 2, size - 1):
            maps = torch.full((3, 61, 83), 0.25, dtype=dtype)
            maps[1].view(-1)[at] = wrong
            assert observe(maps, maps > 2, normalize).bad.tolist() == [0, 1, 0]
    limits = torch.tensor([[[0.0, -0.0, 1.0]]], dtype=dtype)
    assert observe(limits, limits > 0, normalize).bad.tolist() == [0]


@pytest.mark.parametrize("shape", [(40, 57), (3, 400), (400, 3), (300, 350), (1, 1)], ids=str)
def test_distances_are_exact(shape: tuple[int, int]) -> None:
    """Each squared distance has a weight of its own, drawn at random."""
    rng = np.random.default_rng(2)
    weights = rng.random(1 << 16)
    for density in (0, 0.5 / np.prod(shape), 0.003, 0.5, 1):
        mask = rng.random(shape) < density
        mask[-1, -1] |= density > 0
        squares = distance_transform_edt(~mask) ** 2 if mask.any() else np.full(shape, REACH**2)
        squares = np.minimum(squares.round(), REACH**2).astype(int)
        maps = torch.from_numpy(np.where(mask, 0, rng.random(shape)))[None]
        found = saliency_maps(maps, torch.from_numpy(mask)[None], torch.from_numpy(weights), False)["weighted"]
        expected = np.sum(np.where(mask, 1, maps[0].numpy()) * weights[squares])
        np.testing.assert_allclose(found.numpy(), [expected], rtol=1e-12)


def test_threads_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    maps, masks = maps_of((9, 70, 90), torch.float32, generator), blob((9, 70, 90), generator)
    assert_threads_change_nothing(lambda: observe(maps, masks, True), 1, 2, 5)
    for one, alone in zip(observe(maps, masks, True), observe(maps[4:5], masks[4:5], True), strict=True):
        assert torch.equal(one[4:5], alone)


def test_the_backend_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    maps, masks = maps_of((2, 20, 30), torch.uint8, generator), blob((2, 20, 30), generator)
    found = functional.saliency_metrics(maps, masks)
    monkeypatch.setattr("segops.metrics.saliency_maps.saliency_maps", None)
    monkeypatch.setenv("SEGOPS_BACKEND", "reference")
    for name, value in functional.saliency_metrics(maps, masks).items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("level", _library.native.cpu_isas() if _library.native else [])
def test_every_instruction_set(level: str) -> None:
    assert words_with_instruction_set(level, "-m", "tests.metrics.test_saliency_maps") == [level]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    maps, masks = maps_of((2, 9, 11), dtype, generator), blob((2, 9, 11), generator)
    nearness = torch.rand(REACH**2 + 1, dtype=torch.float64)
    torch.library.opcheck(torch.ops.segops.saliency_maps.default, (maps, masks.byte(), nearness, True))


def test_the_binding_checks_what_memory_safety_needs() -> None:
    maps, masks, nearness = torch.rand(2, 5, 7), torch.zeros(2, 5, 7).byte(), torch.zeros(REACH**2 + 1).double()
    run = torch.ops.segops.saliency_maps
    for arguments, message in (
        ((maps[0], masks, nearness), r"prediction must be \[N, H, W\]"),
        ((maps[:, :0], masks[:, :0], nearness), r"prediction must be \[N, H, W\]"),
        ((maps, masks[:, :4], nearness), r"target must be \[2, 5, 7\], got \[2, 4, 7\]"),
        ((maps, masks.int(), nearness), "target must be uint8"),
        ((maps, masks, nearness[1:]), "nearness must be a vector of 65026"),
        ((maps, masks, nearness.float()), "nearness must be a vector of 65026"),
        ((maps.long(), masks, nearness), "not supported"),
    ):
        with pytest.raises(RuntimeError, match=f"segops.saliency_maps: {message}"):
            run(*arguments, True)


if __name__ == "__main__":
    for edge in MASKS:
        for form in SHAPES:
            test_kernel_equals_tensors(form, edge, True)
            test_kernel_equals_tensors(form, edge, False)
    print(_library.native.cpu_isa() if _library.native else "")
