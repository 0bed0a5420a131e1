"""upsample_argmax on every backend: labels within rounding of the maximum, exact ones where numbers are, scores."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from segops.reference import upsample_argmax as reference
from tests.cases import LAYOUTS, VIEWS, make_logits
from tests.cpu import assert_threads_change_nothing
from tests.tolerances import assert_near

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)

#: Shape and size: one pixel, one class, whole and broken scales, rows that fill tiles and rows that do not, down, both.
CASES: dict[str, tuple[tuple[int, ...], int | tuple[int, int]]] = {
    "one pixel": ((2, 3, 1, 1), (5, 7)),
    "to one pixel": ((1, 4, 7, 5), 1),
    "one class": ((1, 1, 3, 5), (7, 11)),
    "same": ((1, 3, 5, 70), (5, 70)),
    "x2": ((2, 5, 4, 33), (8, 66)),
    "x4": ((1, 19, 4, 20), (16, 80)),
    "x8": ((1, 19, 2, 20), (16, 160)),
    "primes": ((2, 7, 7, 31), (13, 47)),
    "huge": ((1, 4, 3, 2), (23, 301)),
    "down, half": ((1, 5, 8, 140), (4, 70)),
    "down, hardly": ((1, 5, 9, 140), (8, 131)),
    "down, huge": ((1, 3, 97, 301), (5, 7)),
    "down and up": ((1, 6, 29, 5), (4, 90)),
    "many classes": ((1, 150, 3, 5), (5, 19)),
    "no images": ((0, 3, 4, 5), (8, 10)),
}


def interpolated(x: Tensor, size: int | tuple[int, int], align_corners: bool) -> Tensor:
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(x.double(), size, mode="bilinear", align_corners=align_corners)


def check(x: Tensor, size: int | tuple[int, int], align_corners: bool, labels: Tensor, score: Tensor) -> None:
    """Each label's logit is the largest within rounding, and the scores keep the rule of tests/tolerances.py."""
    truth = interpolated(x, size, align_corners)
    assert labels.shape == (x.shape[0], *truth.shape[2:])
    assert score.shape == labels.shape
    index = labels.long()[:, None]
    if x.numel() == 0:
        return
    assert int(index.min()) >= 0
    assert int(index.max()) < x.shape[1]
    # Four products and three sums, each rounded, of weights that are rounded too.
    accumulated = torch.float64 if x.dtype == torch.float64 else torch.float32
    rounding = 8 * torch.finfo(accumulated).eps * float(x.double().abs().max())
    behind = truth.amax(1, keepdim=True) - truth.gather(1, index)
    assert float(behind.max()) <= rounding, f"label is {float(behind.max()):.3e} below the maximum"
    own_logits = F.interpolate(x.to(accumulated), truth.shape[2:], mode="bilinear", align_corners=align_corners)
    own = own_logits.softmax(1).gather(1, index)[:, 0]
    assert_near(score, truth.softmax(1).gather(1, index)[:, 0], own, scale=float(x.double().abs().max()), what="score")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", [*LAYOUTS, *VIEWS])
@pytest.mark.parametrize("name", CASES)
def test_labels_and_scores(name: str, layout: str, align_corners: bool, backend: str, device: str) -> None:
    shape, size = CASES[name]
    turn = list(CASES).index(name) + [*LAYOUTS, *VIEWS].index(layout)
    x = make_logits(shape, DTYPES[turn % 4], layout, device=device)
    labels, score = segops.upsample_argmax(x, size, align_corners, LABELS[turn // 4 % 4], True, backend=backend)
    assert labels.dtype == LABELS[turn // 4 % 4]
    assert score.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    check(x, size, align_corners, labels, score)
    alone = segops.upsample_argmax(x, size, align_corners, LABELS[turn // 4 % 4], backend=backend)
    assert torch.equal(alone, labels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_all_widths_and_dtypes(layout: str, dtype: torch.dtype, kernel_backend: str, device: str) -> None:
    """Each length of a row's tail, and coarse rows shorter and longer than any vector."""
    widths = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 65) if kernel_backend != "triton" else (3, 17)
    for width, times in itertools.product(widths, (0.6, 1, 1.07, 1.9, 3, 8.3)):
        x = make_logits((1, 5, 2, width), dtype, layout, device=device)
        size = (3, max(int(width * times), 1))
        check(x, size, False, *segops.upsample_argmax(x, size, return_score=True, backend=kernel_backend))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_exact_where_weights_are(layout: str, backend: str, device: str) -> None:
    """Small integers and weights of eighths: every interpolated logit is exact, ties are many, the smallest wins."""
    x = torch.randint(-2, 3, (2, 9, 5, 40), generator=torch.Generator().manual_seed(3)).to(device).float()
    x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    sizes = ((10, 80), (5, 40), (20, 160))
    for size in sizes[:2] if backend == "triton" and device == "cpu" else sizes:
        truth = interpolated(x, size, False)
        best = truth.amax(1, keepdim=True)
        assert ((truth == best).sum(1) > 1).float().mean() > 0.05, "no ties"
        smallest = (truth == best).to(torch.uint8).argmax(1)
        for dtype in DTYPES:
            labels = segops.upsample_argmax(x.to(dtype), size, dtype=torch.int64, backend=backend)
            assert torch.equal(labels, smallest)


def test_planted_ties(backend: str, device: str) -> None:
    """Equal planes give equal logits whatever the weights are."""
    x = make_logits((1, 6, 5, 21), device=device)
    x[:, 3] = x[:, 1] = 50.0
    x[:, 5] = x[:, 4]
    labels = segops.upsample_argmax(x, (13, 77), backend=backend)
    assert (labels == 1).all()
    x[:, :4] -= 100
    assert (segops.upsample_argmax(x, (13, 77), backend=backend) == 4).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity(layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    """The first NaN wins and its score is NaN; everything else is as if the special values were elsewhere."""
    nan, inf = float("nan"), float("inf")
    x = make_logits((1, 5, 7, 90), dtype, layout, device=device)
    x[0, 1, 1, 4] = x[0, 3, 1, 5] = nan
    x[0, 4, 5, 60] = inf
    x[0, 2, 3, 30] = -inf
    x[0, :, 6, 80] = -inf
    for size, align_corners in (((27, 350), True), ((28, 400), False), ((6, 71), False)):
        labels, score = segops.upsample_argmax(x, size, align_corners, torch.int64, True, backend=backend)
        full = interpolated(x, size, align_corners)
        expected = full.argmax(1)
        special = ~full.isfinite().all(1)
        assert special.any()
        assert torch.equal(labels[special], expected[special])
        assert torch.equal(score.isnan(), full.softmax(1).amax(1).isnan())
        kept = full.masked_fill(special[:, None], 0.0)
        behind = kept.amax(1) - kept.gather(1, labels[:, None])[:, 0]
        assert float(behind.max()) < 1e-4


def test_extreme_logits(backend: str, device: str) -> None:
    """Probabilities of zero and one, and sums that overflow where the maximum is not taken off."""
    x = make_logits((1, 3, 4, 20), scale=1e4, device=device)
    check(x, (9, 65), False, *segops.upsample_argmax(x, (9, 65), return_score=True, backend=backend))
    same = torch.full((1, 7, 2, 2), 300.0, device=device)
    labels, score = segops.upsample_argmax(same, (5, 67), return_score=True, backend=backend)
    assert not labels.any()
    assert torch.allclose(score, torch.full_like(score, 1 / 7), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "classes"), [(torch.uint8, 256), (torch.int16, 300), (torch.int32, 70_000)])
def test_largest_labels(dtype: torch.dtype, classes: int, backend: str, device: str) -> None:
    if backend in ("triton", "simt") and classes > 300:
        pytest.skip("a class at a time, seconds")
    x = torch.zeros(1, classes, 2, 3, device=device)
    x[:, classes - 1] = 1.0
    labels = segops.upsample_argmax(x, (4, 5), dtype=dtype, backend=backend)
    assert labels.dtype == dtype
    assert (labels.long() == classes - 1).all()


def test_results_are_contiguous_and_all_written(kernel_backend: str, poisoned_memory: None, device: str) -> None:
    x = make_logits((2, 4, 3, 30), layout="channels_last", device=device)
    labels, score = segops.upsample_argmax(x, (13, 131), dtype=torch.int32, return_score=True, backend=kernel_backend)
    assert labels.is_contiguous()
    assert score.is_contiguous()
    assert int(labels.min()) >= 0
    assert not score.isnan().any()


def test_number_of_threads_changes_nothing() -> None:
    x = make_logits((3, 19, 40, 50), torch.bfloat16)
    assert_threads_change_nothing(
        lambda: segops.upsample_argmax(x, (320, 400), return_score=True, backend="native"), 1, 2, 3, 7
    )


def test_reference_is_torchs(device: str) -> None:
    x = make_logits((2, 5, 6, 7), torch.float16, device=device)
    labels, score = reference.upsample_argmax(x, 13, 29, False, torch.uint8)
    full = F.interpolate(x.float(), (13, 29), mode="bilinear")
    assert torch.equal(labels.long(), full.argmax(1))
    assert torch.equal(score, full.softmax(1).amax(1))
