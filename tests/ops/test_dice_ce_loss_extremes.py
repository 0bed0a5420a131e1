"""dice_ce_loss on logits that break a naive softmax: outliers, infinities, NaN, and sums beyond their dtype's range."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from tests.cases import make_logits, random_labels
from tests.ops.dice_ce_loss_eager import OPTIONS, eager, fill
from tests.tolerances import assert_near, compare, outcome

INF, NAN = float("inf"), float("nan")
SHAPE, CLASSES = (2, 5, 16, 24), 5
LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def labels_without(label: int, device: str) -> Tensor:
    target = random_labels((2, 16, 24), CLASSES, device=device)
    target[target == label] = 0
    target[0, 0, 0] = 1
    return target


def one_outlier(x: Tensor) -> None:
    x[0, 2, 3, 4] = 1e4


def pixels_of_outliers(x: Tensor) -> None:
    x[:, :, ::3, ::5] *= 3000


def lowest_masks_a_class(x: Tensor) -> None:
    x[:, 3] = max(-1e30, torch.finfo(x.dtype).min)


def lowest_at_targets(x: Tensor) -> None:
    x[:, 1, ::2] = max(-1e30, torch.finfo(x.dtype).min)


def both_ends_of_the_range(x: Tensor) -> None:
    x[0, 0, :4], x[0, 1, :4] = torch.finfo(x.dtype).max, torch.finfo(x.dtype).min


def common_offset(x: Tensor) -> None:
    x += 1000


def negative_offset(x: Tensor) -> None:
    x -= 1000


def offset_of_some_pixels(x: Tensor) -> None:
    x[1, :, 5:, ::7] += 500


def minus_infinity_masks_a_class(x: Tensor) -> None:
    x[:, 3] = -INF


def minus_infinity_at_a_target(x: Tensor) -> None:
    x[0, 1, 0, 0] = -INF


def only_one_class_left(x: Tensor) -> None:
    x[0, :, 2, 2] = -INF
    x[0, 4, 2, 2] = 3.0


def all_minus_infinity(x: Tensor) -> None:
    x[0, :, 2, 2] = -INF


def infinity(x: Tensor) -> None:
    x[1, 2, 7, 7] = INF


def nan(x: Tensor) -> None:
    x[1, 2, 7, 7] = NAN


def around_the_bound_of_the_fast_way(x: Tensor) -> None:
    """exp without subtracting the maximum is good for |x| up to about 44 (354 in float64)."""
    bound = 354.0 if x.dtype == torch.float64 else 44.0
    x[0] = x[0].sign() * torch.linspace(bound - 1, bound + 1, 24, dtype=x.dtype, device=x.device)
    x[1, :, :8] = x[1, :, :8].sign() * torch.linspace(bound - 2, bound - 0.5, 24, dtype=x.dtype, device=x.device)


def all_equal(x: Tensor) -> None:
    x.zero_()


def tiny(x: Tensor) -> None:
    x *= torch.finfo(x.dtype).smallest_normal


EXTREMES: list[Callable[[Tensor], None]] = [
    one_outlier,
    pixels_of_outliers,
    lowest_masks_a_class,
    lowest_at_targets,
    both_ends_of_the_range,
    common_offset,
    negative_offset,
    offset_of_some_pixels,
    minus_infinity_masks_a_class,
    minus_infinity_at_a_target,
    only_one_class_left,
    all_minus_infinity,
    infinity,
    nan,
    around_the_bound_of_the_fast_way,
    all_equal,
    tiny,
]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [(o, d) for o in ("default", "smoothing") for d in LOGITS_DTYPES]
    + [(o, d) for o in ("squared", "only cross-entropy") for d in (torch.float32, torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda f: f.__name__)
def test_extreme_logits(
    extreme: Callable[[Tensor], None], options: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    """As eager PyTorch: NaN and infinity where it has them, in value and gradient, and everything else in tolerance."""
    target = labels_without(3, device)
    for layout in ("contiguous", "channels_last"):
        logits = make_logits(SHAPE, dtype, layout, device=device)
        extreme(logits)
        compare(
            functools.partial(segops.dice_ce_loss, target=target, backend=backend, **OPTIONS[options]),
            functools.partial(eager, target=target, **OPTIONS[options]),
            logits,
            gradient_scale=1 / target.numel(),
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda f: f.__name__)
def test_extreme_logits_pixel_by_pixel(
    extreme: Callable[[Tensor], None], smoothing: float, backend: str, device: str
) -> None:
    """Wild pixels cost their neighbours nothing: each magnitude is held to PyTorch's error at that magnitude."""
    target = labels_without(3, device)
    logits = make_logits(SHAPE, device=device)
    extreme(logits)
    options = {"reduction": "none", "label_smoothing": smoothing}
    ours = outcome(lambda x: segops.dice_ce_loss(x, target, dice_weight=0, backend=backend, **options), logits)
    truth = outcome(lambda x: F.cross_entropy(x, target, **options), logits.double())
    own = outcome(lambda x: F.cross_entropy(x, target, **options), logits)
    size = truth.value.abs().nan_to_num(INF, posinf=INF)
    for low, high in ((0, 8), (8, 100), (100, 3000), (3000, 1e20), (1e20, INF)):
        chosen = (size >= low) & (size < high) if high < INF else size >= low
        if not chosen.any():
            continue
        what = f"pixels with a loss in [{low}, {high})"
        assert_near(ours.value[chosen], truth.value[chosen], own.value[chosen], scale=1.0, what=what)
        every_class = [t.gradient.movedim(1, -1)[chosen] for t in (ours, truth, own)]
        assert_near(*every_class, scale=1.0, what=f"gradient of {what}")


@pytest.mark.parametrize("spread", [3.0, 15.0, 42.0, 80.0, 2000.0])
def test_small_probabilities_keep_their_relative_precision(spread: float, backend: str, device: str) -> None:
    """Their gradient is p itself, over dozens of orders of magnitude."""
    x = (torch.rand(1, 7, 640, device=device) * 2 - 1) * spread
    target = torch.zeros(1, 640, dtype=torch.int64, device=device)

    def relative_error(gradient: Tensor) -> float:
        normal = truth > 2 * torch.finfo(torch.float32).smallest_normal
        normal[:, 0] = False
        assert normal.sum() > 500
        return float(((gradient.double() - truth) / truth)[normal].abs().max())

    truth = outcome(lambda t: F.cross_entropy(t, target, reduction="sum"), x.double()).gradient
    own = outcome(lambda t: F.cross_entropy(t, target, reduction="sum"), x).gradient
    ours = outcome(
        lambda t: segops.dice_ce_loss(t, target, dice_weight=0, reduction="sum", backend=backend), x
    ).gradient
    assert relative_error(ours) <= 2 * relative_error(own) + 1e-6


@pytest.mark.parametrize(("squared", "logit"), [(False, -600.0), (True, -200.0)])
def test_a_vanishing_class_without_smooth(squared: bool, logit: float, backend: str, device: str) -> None:
    """Its score is 0 divided by a number whose square float64 does not hold."""
    logits = torch.tensor([0.0, logit], dtype=torch.float64, device=device).view(1, 2, 1, 1)
    target = torch.zeros(1, 1, 1, dtype=torch.int64, device=device)
    ours = outcome(
        lambda x: segops.dice_ce_loss(x, target, ce_weight=0, smooth=0, squared=squared, backend=backend), logits
    )
    assert ours.value == 0.5
    # The other class has the score 2 p / (p + 1), with squares 2 p / (p^2 + 1), which is flat at 1.
    expected = torch.tensor([0.0, 0.0 if squared else math.exp(logit) / 4], dtype=torch.float64, device=device)
    torch.testing.assert_close(ours.gradient.flatten(), expected, rtol=1e-9, atol=1e-80 if squared else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_calm_and_wild_blocks_in_one_image(layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    """Kernels choose a way of computing softmax for each block: neither may leak into the other's pixels."""
    shape = (2, 5, 64, 97)
    logits = make_logits(shape, dtype, layout, device=device)
    wild = torch.zeros(2, 64, 97, dtype=torch.bool, device=device)
    wild[0, 20:23], wild[0, 60:, 90:], wild[1, :, 50] = True, True, True
    logits.movedim(1, -1)[wild] *= 60
    target = random_labels((2, 64, 97), 5, ignore_index=-100, device=device)
    compare(
        functools.partial(segops.dice_ce_loss, target=target, backend=backend),
        functools.partial(eager, target=target),
        logits,
    )
    options = {"reduction": "none", "dice_weight": 0.0}
    result = compare(
        functools.partial(segops.dice_ce_loss, target=target, backend=backend, **options),
        functools.partial(eager, target=target, **options),
        logits,
    )
    for chosen in (wild, ~wild):
        assert_near(
            *(t.value[chosen] if dtype.itemsize > 2 else t.value[chosen].double() for t in result),
            scale=1.0,
            what="map",
        )


@pytest.mark.parametrize(
    ("garbage", "dtype"), [(NAN, d) for d in LOGITS_DTYPES] + [(g, torch.float32) for g in (INF, -INF, 1e30)], ids=str
)
@pytest.mark.parametrize(
    "name", ["default", "squared", "batch", "no smooth", "smoothing and weights", "sum", "only cross-entropy", "map"]
)
def test_garbage_at_ignored_pixels(name: str, garbage: float, dtype: torch.dtype, backend: str, device: str) -> None:
    """The logits of ignored pixels reach neither value nor gradient, also where a bad label is ignored."""
    options = {"reduction": "none", "dice_weight": 0.0} if name == "map" else OPTIONS[name]
    clean = make_logits(SHAPE, dtype, device=device)
    options = fill(options, clean)
    target = random_labels((2, 16, 24), CLASSES, ignore_index=99, device=device)
    target[0, 3, 5:9] = torch.tensor([-7, 5, 255, 1 << 40], device=device)
    ignored = (target < 0) | (target >= CLASSES)
    dirty = clean.clone()
    dirty.movedim(1, -1)[ignored] = garbage
    own = [
        outcome(functools.partial(eager, target=target, ignore_index=99, **options), x) for x in (clean, clean.double())
    ]
    single = outcome(functools.partial(eager, target=target, ignore_index=99, **options), clean.float())
    for x in (dirty, dirty.movedim(1, -1).contiguous().movedim(-1, 1)):
        ours = outcome(
            lambda t: segops.dice_ce_loss(t, target, ignore_index=99, validate="off", backend=backend, **options), x
        )
        accumulated = single if dtype.itemsize == 2 else (None, None)
        for what, actual, truth, theirs, once in zip(
            ("value", "gradient"), ours, own[1], own[0], accumulated, strict=True
        ):
            assert_near(actual, truth, theirs, once, scale=1.0 if what == "value" else 0.0, what=what)
        assert not ours.gradient.movedim(1, -1)[ignored].any(), "gradient at ignored pixels"


@pytest.mark.parametrize("return_parts", [False, True])
@pytest.mark.parametrize("options", [{"dice_weight": 0.0}, {"dice_weight": 0.0, "label_smoothing": 0.1}])
def test_nan_of_a_pixel_stays_in_its_pixel_for_the_cross_entropy(
    options: dict[str, Any], return_parts: bool, backend: str, device: str
) -> None:
    """Asking for the parts changes no gradient: a term of weight zero is left out."""
    logits, target = make_logits(SHAPE, device=device), random_labels((2, 16, 24), CLASSES, device=device)
    logits[0, 1, 2, 3] = NAN

    def loss(x: Tensor) -> Tensor:
        result = segops.dice_ce_loss(x, target, return_parts=return_parts, backend=backend, **options)
        return result[0] if return_parts else result

    ours = outcome(loss, logits)
    theirs = outcome(lambda x: F.cross_entropy(x, target, label_smoothing=options.get("label_smoothing", 0.0)), logits)
    assert ours.value.isnan()
    assert theirs.value.isnan()
    assert torch.equal(ours.gradient.isnan(), theirs.gradient.isnan())


def test_nan_of_a_pixel_stays_in_its_image_for_the_overlap(backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, device=device), random_labels((2, 16, 24), CLASSES, device=device)
    logits[0, 1, 2, 3] = NAN
    options = {"ce_weight": 0.0, "backend": backend}
    for batch_dice, nan_images in ((False, [True, False]), (True, [True, True])):
        ours = outcome(lambda x: segops.dice_ce_loss(x, target, batch_dice=batch_dice, **options), logits)  # noqa: B023
        assert ours.value.isnan()
        assert ours.gradient.isnan().all((1, 2, 3)).tolist() == nan_images
    _, parts = segops.dice_ce_loss(logits, target, return_parts=True, backend=backend)
    assert parts.scores.isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("special", [NAN, INF])
@pytest.mark.parametrize("squared", [False, True])
def test_ignored_pixels_have_no_gradient_in_an_image_that_is_nan(
    squared: bool, special: float, backend: str, device: str
) -> None:
    logits, target = make_logits(SHAPE, device=device), random_labels((2, 16, 24), CLASSES, device=device)
    logits[0, 1, 2, 3] = special
    target[0, 9:11] = -100
    ours = outcome(lambda x: segops.dice_ce_loss(x, target, squared=squared, backend=backend), logits)
    assert ours.value.isnan()
    assert not ours.gradient[0, :, 9:11].any()


def test_weight_zero_times_infinity_is_nan_as_in_torch(backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, device=device), random_labels((2, 16, 24), CLASSES, device=device)
    logits[0, 1, 2, 3], target[0, 2, 3] = -INF, 1
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], device=device)
    assert F.cross_entropy(logits, target, weight).isnan()
    assert segops.dice_ce_loss(logits, target, weight=weight, dice_weight=0, backend=backend).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("squared", [False, True])
def test_sixteen_bit_sums_do_not_overflow(squared: bool, dtype: torch.dtype, backend: str, device: str) -> None:
    """Pixels are more than float16 can count (65504), and than bfloat16 can count by ones (256)."""
    # Of 512 x 512 the sum of losses is more than float16 holds, too; Triton's interpreter takes seconds for them.
    height, width = (256, 260) if backend == "triton" and device == "cpu" else (512, 512)
    logits = torch.zeros(1, 2, height, width, dtype=dtype, device=device).requires_grad_()
    target = torch.zeros(1, height, width, dtype=torch.uint8, device=device)
    options = {"squared": squared, "smooth": 0.0, "backend": backend}
    loss, parts = segops.dice_ce_loss(logits, target, return_parts=True, **options)
    loss.backward()
    score = 2 * 0.5 / (0.25 + 1) if squared else 2 * 0.5 / (0.5 + 1)
    expected = torch.tensor([score, 0.0], dtype=torch.float64).to(dtype)
    assert torch.equal(parts.scores.cpu(), expected[None])
    assert torch.equal(parts.ce.cpu(), torch.tensor(2.0).log().to(dtype))
    assert torch.equal(loss.detach().cpu(), (torch.tensor(2.0).double().log() + 1 - score / 2).to(dtype))
    assert logits.grad.isfinite().all()
    total = segops.dice_ce_loss(logits, target, reduction="sum", dice_weight=0, backend=backend)
    assert torch.equal(total, (height * width * torch.tensor(2.0, device=device).double().log()).to(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_counts_beyond_what_float32_can_count(layout: str, device: str) -> None:
    """2^24 + 64 pixels: counts and sums are exact, because they are not kept in float32."""
    count = (1 << 24) + 64
    logits = torch.zeros(1, 2, count, dtype=torch.bfloat16, device=device)
    if layout == "channels_last":
        logits = torch.zeros(1, count, 2, dtype=torch.bfloat16, device=device).movedim(-1, 1)
    target = torch.zeros(1, count, dtype=torch.uint8, device=device)
    overlap, ce, _, confusion, _ = torch.ops.segops.dice_ce_loss_statistics(
        logits, target, None, None, -100, 0.0, False, True, True, False, 0
    )
    assert overlap[0].tolist() == [[count / 2, 0], [count / 2, count / 2], [count, 0]]
    assert ce[1].item() == count
    assert confusion.tolist() == [[count, 0], [0, 0]]


@pytest.mark.parametrize("count", [128, 1024, 5000, 100_000])
@pytest.mark.parametrize("classes", [2, 3, 5, 7, 19])
def test_rounding_of_equal_summands_does_not_pile_up(
    classes: int, count: int, kernel_backend: str, device: str
) -> None:
    """As at the start of a training: every pixel has the same loss, so that every addition may round the same way."""
    target = torch.zeros(1, count, dtype=torch.int64, device=device)
    for options in ({"dice_weight": 0.0}, {"ce_weight": 0.0}):
        compare(
            functools.partial(segops.dice_ce_loss, target=target, backend=kernel_backend, **options),
            functools.partial(eager, target=target, **options),
            torch.full((1, classes, count), 0.3, device=device),
        )


@pytest.mark.parametrize("classes", [2, 19])
def test_long_sums_stay_precise(classes: int, kernel_backend: str, device: str) -> None:
    height = 100 if kernel_backend == "triton" and device == "cpu" else 300  # its interpreter takes seconds
    shape = (1, classes, height, 401)
    target = random_labels((1, height, 401), classes, device=device)
    compare(
        functools.partial(segops.dice_ce_loss, target=target, backend=kernel_backend),
        functools.partial(eager, target=target),
        make_logits(shape, device=device),
    )
