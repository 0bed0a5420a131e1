"""The whole package once, in seconds, with nothing but torch: what an installed wheel has to pass (`make dist`)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import segops
from segops import _library
from segops.metrics import SegmentationMetrics

IGNORED = 255


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def labels(*shape: int, classes: int = 5) -> torch.Tensor:
    target = torch.randint(0, classes, shape)
    target[:, 0] = IGNORED
    return target


def test_the_libraries_are_loaded() -> None:
    assert _library.cpu_unavailable is None
    assert segops.backends.resolve(None, torch.device("cpu")) == "native"
    if torch.version.cuda is None:
        assert _library.cuda_unavailable == "this torch has no CUDA"
    elif (_library._DIRECTORY / "libsegops_cuda.so").exists():
        assert _library.cuda_unavailable is None
        assert torch._C._dispatch_has_kernel_for_dispatch_key("segops::dice_ce_loss_statistics", "CUDA")


@pytest.mark.parametrize("size", [(24, 28), (6, 7)], ids=["full size", "coarse"])
def test_dice_ce_loss(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    target = labels(2, 24, 28)
    loss = segops.dice_ce_loss(logits, target, ignore_index=IGNORED)
    loss.backward()
    assert logits.grad is not None
    expected = logits.detach().requires_grad_()
    full = F.interpolate(expected, (24, 28), mode="bilinear")
    counts = (target != IGNORED)[:, None]
    probability = full.softmax(1) * counts
    one_hot = F.one_hot(target.where(target != IGNORED, 0), 5).movedim(-1, 1) * counts
    both, either = (probability * one_hot).sum((2, 3)), (probability + one_hot).sum((2, 3))
    dice = 1 - ((2 * both + 1e-5) / (either + 1e-5)).mean()
    (F.cross_entropy(full, target, ignore_index=IGNORED) + dice).backward()
    torch.testing.assert_close(loss, F.cross_entropy(full, target, ignore_index=IGNORED) + dice)
    torch.testing.assert_close(logits.grad, expected.grad)


def test_dice_bce_loss() -> None:
    logits, target = torch.randn(2, 3, 9, 11), torch.rand(2, 3, 9, 11)
    loss = segops.dice_bce_loss(logits, target, dice_weight=0)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, target))


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling(align_corners: bool) -> None:
    image, skip = torch.randn(2, 5, 6, 7), torch.randn(2, 3, 13, 17)
    expected = F.interpolate(image, (13, 17), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(segops.upsample_bilinear2d(image, (13, 17), align_corners=align_corners), expected)
    torch.testing.assert_close(segops.upsample_cat(image, skip, align_corners), torch.cat([skip, expected], 1))
    assert torch.equal(segops.upsample_argmax(image, (13, 17), align_corners).long(), expected.argmax(1))
    assert torch.equal(segops.upsample_nearest2d(image, scale_factor=2), F.interpolate(image, scale_factor=2.0))


def test_pooling_and_back() -> None:
    image = torch.randn(2, 3, 8, 10)
    pooled, indices = segops.max_pool2d(image, 2)
    expected, flat = F.max_pool2d(image, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    assert indices.dtype == torch.uint8
    assert torch.equal(segops.local_to_flat_indices(indices, (8, 10), 2), flat)
    assert torch.equal(segops.max_unpool2d(pooled, indices, 2), F.max_unpool2d(expected, flat, 2))
    with pytest.raises(ValueError, match="max_unpool2d"):
        segops.max_unpool2d(pooled, indices + 4, 2)


def test_dilated_conv() -> None:
    image, weight = torch.randn(1, 4, 17, 19), torch.randn(6, 4, 3, 3)
    scale, shift = torch.rand(6), torch.randn(6)
    output = segops.dilated_conv2d(image, weight, None, 1, 2, 2, scale=scale, shift=shift, activation="relu")
    expected = F.conv2d(image, weight, padding=2, dilation=2) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(output, expected.relu(), rtol=1e-4, atol=1e-4)


def test_confusion_matrix() -> None:
    prediction, target = torch.randint(0, 5, (2, 9, 9)), labels(2, 9, 9)
    counted = target != IGNORED
    expected = torch.bincount(5 * target[counted] + prediction[counted], minlength=25).view(5, 5)
    assert torch.equal(segops.confusion_matrix(prediction, target, 5, IGNORED), expected)
    with pytest.raises(ValueError, match="confusion_matrix"):
        segops.confusion_matrix(prediction, target, 5)


def test_a_network_learns_and_is_measured() -> None:
    model = segops.models.create_model("segnet_basic", num_classes=2)
    images = torch.randn(2, 3, 32, 32)
    target = (images.mean(1) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = segops.dice_ce_loss(model(images), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    metrics = SegmentationMetrics(2)
    metrics.update(segops.predict(model.eval(), images), target)
    assert 0 <= metrics.compute()["miou"] <= 1
    assert int(metrics.compute()["confusion"].sum()) == target.numel()
