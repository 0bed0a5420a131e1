"""SSIMLoss, BASNetLoss and U2NetLoss against loops over pixels, and their formulas in plain PyTorch, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segops.nn import BASNetLoss, SSIMLoss, U2NetLoss
from tests.cases import make_logits

SIZES = [(23, 19), (5, 3), (1, 1)]


def mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) > 0.6


def similarity_by_loops(p: np.ndarray, t: np.ndarray) -> float:
    """The mean similarity of two images of one channel, window by window."""
    height, width = p.shape
    g = np.array([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)])
    window = np.outer(g, g) / g.sum() ** 2
    p, t = np.pad(p, 5), np.pad(t, 5)
    total = 0.0
    for y in range(height):
        for x in range(width):
            a, b = p[y : y + 11, x : x + 11], t[y : y + 11, x : x + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma * ma, (window * b * b).sum() - mb * mb
            cov = (window * a * b).sum() - ma * mb
            c1, c2 = 0.01**2, 0.03**2
            total += (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return total / (height * width)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_is_its_definition(size: tuple[int, int]) -> None:
    prediction, target = make_logits((2, 3, *size), torch.float64).sigmoid(), mask(2, 3, *size)
    expected = np.mean(
        [similarity_by_loops(prediction[n, c].numpy(), target[n, c].double().numpy()) for n in (0, 1) for c in range(3)]
    )
    assert SSIMLoss()(prediction, target).item() == pytest.approx(1 - expected, abs=1e-12)
    assert SSIMLoss()(prediction[:, 0], prediction[:, 0]).item() == pytest.approx(0, abs=1e-12)
    single = SSIMLoss()(prediction.float(), target)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(1 - expected, abs=1e-5)


def test_ssim_of_16_bits_is_that_of_float32() -> None:
    prediction, target = make_logits((2, 1, 21, 17)).sigmoid().bfloat16(), mask(2, 1, 21, 17)
    expected = SSIMLoss()(prediction.float(), target)
    assert SSIMLoss()(prediction, target) == expected.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert SSIMLoss()(prediction.float(), target) == expected


def test_ssim_has_its_gradient() -> None:
    prediction = make_logits((1, 2, 6, 5), torch.float64).sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: SSIMLoss(5, 1.0)(p, mask(1, 2, 6, 5)), (prediction,))


def plain_basnet_loss(logits: list[Tensor], target: Tensor) -> Tensor:
    t = target.double()
    total = torch.zeros((), dtype=torch.float64)
    g = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = (g[:, None] * g / g.sum() ** 2)[None, None]
    for head in logits:
        p = torch.sigmoid(F.interpolate(head, t.shape[2:], mode="bilinear"))
        total = total - (t * p.log() + (1 - t) * (1 - p).log()).mean()
        mp, mt, pp, tt, pt = (F.conv2d(a, window, padding=5) for a in (p, t, p * p, t * t, p * t))
        above = (2 * mp * mt + 1e-4) * (2 * (pt - mp * mt) + 9e-4)
        total = total + 1 - (above / ((mp**2 + mt**2 + 1e-4) * (pp - mp**2 + tt - mt**2 + 9e-4))).mean()
        for image, truth in zip(p, t, strict=True):
            both = (image * truth).sum()
            total = total + (1 - both / (image.sum() + truth.sum() - both)) / len(p)
    return total


def heads(dtype: torch.dtype) -> list[Tensor]:
    sizes = [(22, 17)] * 2 + [(11, 9), (6, 5), (3, 3), (2, 2), (1, 1), (1, 1)]
    return [make_logits((2, 1, *size), dtype, seed=i).requires_grad_() for i, size in enumerate(sizes)]


def test_basnet_loss_is_its_formula() -> None:
    logits, target = heads(torch.float64), mask(2, 1, 22, 17)
    loss, expected = BASNetLoss()(logits, target), plain_basnet_loss(logits, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    single = BASNetLoss()([head.detach().float() for head in logits], target.to(torch.uint8))
    assert single.item() == pytest.approx(expected.item(), rel=1e-5)


def test_basnet_loss_without_channels_and_with_weights() -> None:
    logits, target = heads(torch.float64), mask(2, 1, 22, 17)
    flat = BASNetLoss()([head[:, 0] for head in logits], target[:, 0])
    assert flat.item() == pytest.approx(BASNetLoss()(logits, target).item(), rel=1e-12)
    expected = 2 * plain_basnet_loss(logits[:1], target) + 0.5 * plain_basnet_loss(logits[3:4], target)
    assert BASNetLoss((2.0, 0.5))([logits[0], logits[3]], target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_u2net_loss_is_seven_cross_entropies() -> None:
    logits, target = heads(torch.float64)[:7], mask(2, 1, 22, 17)
    full = [F.interpolate(head, (22, 17), mode="bilinear") for head in logits]
    expected = sum(F.binary_cross_entropy_with_logits(head, target.double()) for head in full)
    loss = U2NetLoss()(logits, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_they_are_one_graph() -> None:
    logits, target = [head.detach() for head in heads(torch.float32)], mask(2, 1, 22, 17)
    for loss, given in ((BASNetLoss(), logits), (U2NetLoss(), logits[:7])):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(given, target), loss(given, target))


def test_bad_input() -> None:
    image = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="window_size must be an odd positive int, got 4"):
        SSIMLoss(4)
    with pytest.raises(ValueError, match="sigma must be positive and finite, got 0"):
        SSIMLoss(sigma=0)
    with pytest.raises(TypeError, match=r"prediction must be floating point, got torch.uint8"):
        SSIMLoss()(image.byte(), image)
    with pytest.raises(ValueError, match=r"prediction must be \[N, C, H, W\] or \[N, H, W\], got \[4, 4\]"):
        SSIMLoss()(image[0, 0], image[0, 0])
    with pytest.raises(ValueError, match=r"target must be \[1, 1, 4, 4\] like prediction, got \[1, 4, 4\]"):
        SSIMLoss()(image, image[0])
    with pytest.raises(ValueError, match="one number for each of 1 logits, got 8"):
        BASNetLoss()([image], image)
    with pytest.raises(ValueError, match="one number for each of 8 logits, got 7"):
        U2NetLoss()([image] * 8, image)
    with pytest.raises(ValueError, match="the first is 2 at"):  # a label that is none
        BASNetLoss((1.0,))([image], torch.full((1, 1, 4, 4), 2, dtype=torch.uint8))
