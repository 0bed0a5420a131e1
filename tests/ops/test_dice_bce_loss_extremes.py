"""dice_bce_loss on what breaks a naive sigmoid: outliers, infinities, NaN, numbers at the ends of their range, and sums
beyond their dtype's."""

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
from tests.cases import make_logits
from tests.cpu import assert_threads_change_nothing
from tests.ops.dice_bce_loss_eager import LABEL_DTYPES, OPTIONS, check, eager, fill, make_target
from tests.tolerances import assert_near, outcome

INF, NAN = float("inf"), float("nan")
SHAPE = (2, 3, 8, 12)
LOGITS_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def one_outlier(x: Tensor) -> None:
    x[0, 2, 3, 4] = 1e4


def outliers(x: Tensor) -> None:
    x[:, :, ::3, ::5] *= 3000


def both_ends_of_the_range(x: Tensor) -> None:
    x[0, 0, :4], x[0, 1, :4] = torch.finfo(x.dtype).max, torch.finfo(x.dtype).min


def positive_offset(x: Tensor) -> None:
    x += 1000


def negative_offset(x: Tensor) -> None:
    x -= 1000


def around_where_exp_vanishes(x: Tensor) -> None:
    bound = 745.0 if x.dtype == torch.float64 else 88.0
    x[0] = x[0].sign() * torch.linspace(bound - 2, bound + 2, SHAPE[-1], dtype=x.dtype, device=x.device)
    x[1, :, :4] = x[1, :, :4].sign() * torch.linspace(bound - 3, bound, SHAPE[-1], dtype=x.dtype, device=x.device)


def all_zero(x: Tensor) -> None:
    x.zero_()


def tiny(x: Tensor) -> None:
    x *= torch.finfo(x.dtype).smallest_normal


def nan(x: Tensor) -> None:
    x[1, 2, 7, 7] = NAN


EXTREMES: list[Callable[[Tensor], None]] = [
    one_outlier,
    outliers,
    both_ends_of_the_range,
    positive_offset,
    negative_offset,
    around_where_exp_vanishes,
    all_zero,
    tiny,
    nan,
]


@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("options", ["default", "squared", "pos weight", "focal 1", "focal 2", "focal 0.5"])
@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda f: f.__name__)
def test_extreme_logits(
    extreme: Callable[[Tensor], None], options: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    for layout, label_dtype in (("contiguous", torch.uint8), ("channels_last", torch.float32)):
        target = make_target(SHAPE, label_dtype, OPTIONS[options].get("ignore_index"), device=device)
        logits = make_logits(SHAPE, dtype, layout, device=device)
        extreme(logits)
        check(logits, target, backend, OPTIONS[options], gradient_scale=4 / target.numel())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 5.5])
@pytest.mark.parametrize("special", [INF, -INF], ids=str)
def test_infinite_logits(special: float, gamma: float, backend: str, device: str) -> None:
    """The map is not finite where PyTorch's is not, and nowhere else; without a focal factor gradients are as there."""
    labels = torch.tensor([0.0, 0.25, 1.0], device=device)
    logits = torch.full((1, 1, 2, 3), special, device=device)
    logits[0, 0, 1] = torch.tensor([0.5, -2.0, 3.0])
    target = labels.expand(1, 1, 2, 3)
    options: dict[str, Any] = {"reduction": "none", "focal_gamma": gamma, "dice_weight": 0.0}
    ours = outcome(functools.partial(segops.dice_bce_loss, target=target, backend=backend, **options), logits)
    theirs = outcome(functools.partial(eager, target=target, **options), logits)
    assert torch.equal(ours.value.isfinite(), theirs.value.isfinite())
    if gamma == 0:
        torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.gradient[0, 0, 1], theirs.gradient[0, 0, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("special", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize("gamma", [2.0, 0.0, 0.5])
def test_a_cross_entropy_of_weight_zero_is_left_out(gamma: float, special: float, backend: str, device: str) -> None:
    """Its NaN reaches neither value nor gradient: an infinite logit is a sure answer to the overlap."""
    logits, target = make_logits(SHAPE, device=device), make_target(SHAPE, device=device)
    logits[0, 1, 2, 3:5], target[0, 1, 2, 3], target[0, 1, 2, 4] = special, 0, 1
    options: dict[str, Any] = {"bce_weight": 0.0, "focal_gamma": gamma}
    ours = outcome(functools.partial(segops.dice_bce_loss, target=target, backend=backend, **options), logits)
    theirs = outcome(functools.partial(eager, target=target, **options), logits.double())
    assert ours.value.isfinite() == math.isinf(special)
    assert torch.equal(ours.gradient.isfinite(), theirs.gradient.isfinite())
    torch.testing.assert_close(ours.gradient.double(), theirs.gradient, rtol=1e-4, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_small_losses_keep_their_relative_precision(
    sign: float, gamma: float, kernel_backend: str, device: str
) -> None:
    """Where the answer is right and sure, loss and gradient are e^-|x|, over dozens of orders of magnitude."""
    x = sign * torch.linspace(0.01, 40.0, 640, device=device).view(1, 1, 1, 640)
    target = torch.full_like(x, float(sign > 0))
    options: dict[str, Any] = {"reduction": "none", "dice_weight": 0.0, "focal_gamma": gamma}
    ours = outcome(functools.partial(segops.dice_bce_loss, target=target, backend=kernel_backend, **options), x)
    e = (-x.double().abs()).exp()
    wrong, plain = e / (1 + e), e.log1p()
    slope = -sign * wrong**gamma * (wrong + gamma * (1 - wrong) * plain)
    for actual, expected in zip(ours, (wrong**gamma * plain, slope), strict=True):
        normal = expected.abs() > 2 * torch.finfo(torch.float32).smallest_normal
        assert normal.sum() > 400
        relative = ((actual.double() - expected) / expected)[normal].abs().max()
        assert float(relative) < 4e-6 * max(1.0, gamma)


@pytest.mark.parametrize("gamma", [1e-6, 0.01, 0.5, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_gamma_is_finite_for_finite_logits(
    dtype: torch.dtype, gamma: float, kernel_backend: str, device: str
) -> None:
    """Of saturated and of barely saturated logits, where 1 - p_t is zero or subnormal."""
    x = torch.cat([torch.linspace(80, 110, 60), torch.linspace(700, 760, 60), torch.tensor([1e4, 3e38, 0.0, 1e-38])])
    x = torch.cat([x, -x]).to(dtype).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(device).view(1, 1, 1, -1)
    for label in (0.0, 1.0, 0.5, -1 / 256, 1 + 1 / 256):
        target = torch.full(x.shape, label, device=device)
        options: dict[str, Any] = {"target": target, "focal_gamma": gamma, "reduction": "none", "dice_weight": 0}
        ours = outcome(functools.partial(segops.dice_bce_loss, backend=kernel_backend, **options), x)
        theirs = outcome(functools.partial(eager, **options), x.double())
        assert ours.value.isfinite().all(), label
        assert ours.gradient.isfinite().all(), label
        tolerance = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-6}
        torch.testing.assert_close(ours.value.double(), theirs.value, **tolerance)
        torch.testing.assert_close(ours.gradient.double(), theirs.gradient, **tolerance)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30], ids=str)
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "name", ["default", "squared", "no smooth", "element weight", "focal 0.5", "focal 2", "everything", "map"]
)
def test_garbage_at_elements_that_do_not_count(
    name: str, label_dtype: torch.dtype, garbage: float, backend: str, device: str
) -> None:
    """Logits and weights of ignored elements, and of bad labels, reach neither value nor gradient."""
    map_options = {"reduction": "none", "dice_weight": 0.0, "pixel_weight": "per element"}
    options = dict(map_options if name == "map" else OPTIONS[name], ignore_index=99)
    for layout in ("contiguous", "channels_last"):
        clean = make_logits(SHAPE, layout=layout, device=device)
        target = make_target(SHAPE, label_dtype, 99, device=device)
        target[0, 1, 3, 5:8] = torch.tensor([2, 7, 255], device=device)
        absent = (target < 0) | (target > 1)
        arguments = fill(options, clean)
        dirty = clean.clone()
        dirty[absent] = garbage
        run = functools.partial(segops.dice_bce_loss, target=target, validate="off", backend=backend)
        expected = outcome(functools.partial(run, **arguments), clean)
        if arguments.get("pixel_weight") is not None and arguments["pixel_weight"].shape == clean.shape:
            arguments["pixel_weight"] = torch.where(absent, garbage, arguments["pixel_weight"])
        found = outcome(functools.partial(run, **arguments), dirty)
        assert torch.equal(found.value, expected.value)
        assert torch.equal(found.gradient, expected.gradient)
        assert not found.gradient[absent].any()
        assert found.gradient.isfinite().all()


def test_garbage_around_views(backend: str, device: str) -> None:
    """What lies beside a view in its storage is NaN: logits, labels and weights."""
    wide = torch.full((2, 5, 11, 13), NAN, device=device)
    wide[:, 1:4, 2:9, 3:10] = torch.rand(2, 3, 7, 7, device=device)
    for view in (wide, wide.movedim(1, -1).contiguous().movedim(-1, 1)):
        inner = view[:, 1:4, 2:9, 3:10]
        logits = inner * 4 - 2
        value = segops.dice_bce_loss(logits, inner, pixel_weight=inner, backend=backend)
        torch.testing.assert_close(value, eager(logits, inner.contiguous(), pixel_weight=inner.contiguous()))
        again = segops.dice_bce_loss(view[:, 1:4, 2:9, 3:10], inner, pixel_weight=inner, backend=backend)
        torch.testing.assert_close(again, eager(inner, inner, pixel_weight=inner))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 7, 9)], ids=str)
def test_views_that_repeat_memory(shape: tuple[int, ...], backend: str, device: str) -> None:
    """Expanded logits, labels and weights, in every dimension."""
    for axis in range(len(shape)):
        one = [1 if i == axis else extent for i, extent in enumerate(shape)]
        logits = make_logits(tuple(one), device=device).expand(shape)
        target = make_target(tuple(one), torch.float32, device=device).expand(shape)
        weight = torch.rand(one, device=device).expand(shape)
        ours = outcome(
            lambda x: segops.dice_bce_loss(x, target, pixel_weight=weight, backend=backend),  # noqa: B023
            logits,
        )
        plain = outcome(
            lambda x: segops.dice_bce_loss(
                x,
                target.contiguous(),  # noqa: B023
                pixel_weight=weight.contiguous(),  # noqa: B023
                backend=backend,
            ),
            logits.contiguous(),
        )
        assert torch.equal(ours.value, plain.value)
        assert torch.equal(ours.gradient, plain.gradient)


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_label_of_a_dtype_is_read_exactly(
    dtype: torch.dtype, label_dtype: torch.dtype, backend: str, device: str
) -> None:
    """Sums of labels of all magnitudes, down to subnormal ones, are those of the same labels in float32 or more."""
    if label_dtype.is_floating_point:
        info = torch.finfo(label_dtype)
        powers = torch.tensor([2.0**-k for k in range(60)] + [info.smallest_normal, info.tiny / 2, 1.0, 0.0])
        soft = torch.cat([torch.rand(64), powers]).double().to(label_dtype)
    else:
        soft = torch.randint(0, 2, (128,)).to(label_dtype)
    target = soft.to(device).view(1, 2, 8, 8)
    logits = make_logits((1, 2, 8, 8), dtype, device=device)
    wide = target.to(torch.float64 if label_dtype == torch.float64 else torch.float32)
    for options in ({}, {"focal_gamma": 1.3, "squared": True}):
        ours = outcome(lambda x: segops.dice_bce_loss(x, target, backend=backend, **options), logits)  # noqa: B023
        same = outcome(lambda x: segops.dice_bce_loss(x, wide, backend=backend, **options), logits)  # noqa: B023
        assert torch.equal(ours.value, same.value)
        assert torch.equal(ours.gradient, same.gradient)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_of_an_element_stays_in_its_image_and_channel(layout: str, backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, layout=layout, device=device), make_target(SHAPE, device=device)
    logits[0, 1, 2, 3] = NAN
    one = torch.zeros(2, 3, dtype=torch.bool, device=device)
    one[0, 1] = True
    for batch_dice, expected in ((False, one), (True, one.any(0).expand(2, 3))):
        run = functools.partial(segops.dice_bce_loss, target=target, batch_dice=batch_dice, backend=backend)
        ours = outcome(functools.partial(run, bce_weight=0.0), logits)
        assert ours.value.isnan()
        assert torch.equal(ours.gradient.isnan().all((2, 3)), expected)
        assert torch.equal(ours.gradient.isnan().any(3).any(2), expected)
    ours = outcome(lambda x: segops.dice_bce_loss(x, target, dice_weight=0, backend=backend), logits)
    assert ours.value.isnan()
    assert torch.equal(ours.gradient.isnan(), logits.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("squared", [False, True])
def test_sixteen_bit_sums_do_not_overflow(squared: bool, dtype: torch.dtype, backend: str, device: str) -> None:
    """Elements are more than float16 can count (65504), and than bfloat16 can count by ones (256)."""
    height, width = (256, 260) if backend == "triton" and device == "cpu" else (512, 512)
    logits = torch.zeros(1, 1, height, width, dtype=dtype, device=device).requires_grad_()
    target = torch.ones(1, 1, height, width, dtype=dtype, device=device)
    loss, parts = segops.dice_bce_loss(logits, target, squared=squared, smooth=0.0, return_parts=True, backend=backend)
    loss.backward()
    score = 2 * 0.5 / (0.25 + 1) if squared else 2 * 0.5 / (0.5 + 1)
    assert torch.equal(parts.scores.cpu(), torch.tensor([[score]], dtype=torch.float64).to(dtype))
    assert torch.equal(parts.bce.cpu(), torch.tensor(2.0).log().to(dtype))
    assert logits.grad.isfinite().all()
    total = segops.dice_bce_loss(logits, target, reduction="sum", dice_weight=0, backend=backend)
    assert torch.equal(total, (height * width * torch.tensor(2.0, device=device).double().log()).to(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_counts_beyond_what_float32_can_count(layout: str, device: str) -> None:
    """2^24 + 64 pixels: counts and sums are exact, because they are not kept in float32."""
    count = (1 << 24) + 64
    shape = (1, count, 2) if layout == "channels_last" else (1, 2, count)
    logits, target = torch.zeros(shape, dtype=torch.bfloat16, device=device), torch.ones(shape, dtype=torch.uint8)
    if layout == "channels_last":
        logits, target = logits.movedim(-1, 1), target.movedim(-1, 1)
    overlap, bce, _, _ = torch.ops.segops.dice_bce_loss_statistics(
        logits, target.to(device), None, None, None, 0.0, False, True, False, 0
    )
    assert overlap[0].tolist() == [[count / 2] * 2, [count / 2] * 2, [count] * 2]
    assert bce[1].item() == 2 * count


@pytest.mark.parametrize("count", [128, 1024, 5000, 100_000])
@pytest.mark.parametrize("channels", [1, 2, 7, 19])
def test_rounding_of_equal_summands_does_not_pile_up(
    channels: int, count: int, kernel_backend: str, device: str
) -> None:
    """As at the start of a training: every element has the same loss, so that every addition may round the same way."""
    if kernel_backend == "triton" and device == "cpu" and channels * count > 200_000:
        channels = 1  # its interpreter takes seconds
    for layout in ("contiguous", "channels_last"):
        logits = torch.full((1, channels, 1, count), 0.3, device=device)
        if layout == "channels_last":
            logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
        for options in ({"dice_weight": 0.0}, {"bce_weight": 0.0}):
            check(logits, torch.ones_like(logits, dtype=torch.bool), kernel_backend, options)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_thousands_of_channels(layout: str, kernel_backend: str, device: str) -> None:
    channels = 1031 if kernel_backend == "triton" and device == "cpu" else 5003
    shape = (2, channels, 1, 3)
    target = make_target(shape, torch.float16, 255, device=device)
    options = {"ignore_index": 255, "pixel_weight": "per pixel", "pos_weight": "per channel", "focal_gamma": 0.5}
    check(make_logits(shape, layout=layout, device=device), target, kernel_backend, options)


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e30], ids=str)
def test_weights_at_the_ends_of_their_range(weight: float, backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, device=device), make_target(SHAPE, torch.float32, device=device)
    positive = torch.tensor([weight, 1.0, weight], device=device)
    check(logits, target, backend, {"pos_weight": positive, "dice_weight": 0.0})
    weights = torch.full((2, 8, 12), weight, device=device)
    weights[0, 0, 0] = 1.0
    check(logits, target, backend, {"pixel_weight": weights, "dice_weight": 0.0})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_any_dtype_and_stride(dtype: torch.dtype, backend: str, device: str) -> None:
    logits, target = make_logits(SHAPE, device=device), make_target(SHAPE, device=device)
    positive = torch.tensor([0.5, NAN, 2.0, NAN, 3.0, NAN], dtype=dtype, device=device)[::2]
    weights = (torch.randint(1, 9, (2, 8, 24), device=device) / 8).to(dtype)[..., ::2]
    ours = segops.dice_bce_loss(logits, target, pos_weight=positive, pixel_weight=weights, backend=backend)
    same = segops.dice_bce_loss(
        logits,
        target,
        pos_weight=positive.contiguous().double(),
        pixel_weight=weights.contiguous().float(),
        backend=backend,
    )
    assert torch.equal(ours, same)


@pytest.mark.parametrize("align_corners", [False, True])
def test_coarse_logits_at_ignored_pixels(align_corners: bool, backend: str, device: str) -> None:
    """A NaN that only ignored pixels read has no influence, and a gradient of zero."""
    logits = make_logits((1, 2, 4, 5), device=device)
    target = make_target((1, 2, 13, 17), device=device)
    logits[0, 1, 0, 0] = NAN
    spoilt = F.interpolate(logits, (13, 17), mode="bilinear", align_corners=align_corners).isnan()
    target[spoilt] = 255
    run = functools.partial(
        segops.dice_bce_loss, target=target, ignore_index=255, align_corners=align_corners, backend=backend
    )
    ours = outcome(run, logits)
    clean = outcome(run, logits.nan_to_num(0.5))
    assert torch.equal(ours.value, clean.value)
    assert torch.equal(ours.gradient, clean.gradient)
    assert ours.gradient[0, 1, 0, 0] == 0


def test_threads_change_nothing_for_coarse_logits() -> None:
    for (c, h, w), size in (((1, 33, 47), (131, 190)), ((21, 9, 11), (40, 41)), ((3, 2, 2), (257, 259))):
        logits, target = make_logits((2, c, h, w)), make_target((2, c, *size), torch.bfloat16, 255)
        weights = torch.rand(2, 1, *size)
        loss = functools.partial(
            segops.dice_bce_loss, target=target, pixel_weight=weights, ignore_index=255, backend="native"
        )
        focal = functools.partial(loss, focal_gamma=2.0)

        def run(losses: Any = (loss, focal), logits: Tensor = logits) -> list[Tensor]:
            return [t for one in losses for t in outcome(one, logits)]

        assert_threads_change_nothing(run, 1, 2, 3, 5)


def test_long_sums_stay_precise(kernel_backend: str, device: str) -> None:
    height = 100 if kernel_backend == "triton" and device == "cpu" else 500
    shape = (1, 2, height, 401)
    logits, target = make_logits(shape, device=device), make_target(shape, device=device)
    ours = segops.dice_bce_loss(logits, target, backend=kernel_backend)
    truth, own = eager(logits.double(), target), eager(logits, target)
    assert_near(ours, truth, own, what="loss")
