"""SegmentationMetrics against torchmetrics, by hand, and on real labels."""

from __future__ import annotations

import pytest
import torch

import segops
from segops.metrics import SegmentationMetrics, functional
from tests.cases import coherent_labels, make_logits, random_labels
from tests.metrics.data import files, grey

CLASSES = 5


def batch(images=3, seed=0, ignore=None):
    logits, target = (
        make_logits((images, CLASSES, 13, 17), seed=seed),
        random_labels((images, 13, 17), CLASSES, seed=seed),
    )
    if ignore is not None:
        target[:, 2:5, 3:] = ignore
    return logits, target


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0, equal_nan=True)


def by_torchmetrics(prediction, target, ignore_index=None):
    classification = pytest.importorskip("torchmetrics.classification")

    def of(name, average):
        metric = getattr(classification, name)(num_classes=CLASSES, average=average, ignore_index=ignore_index)
        return metric(prediction, target).double()

    return {
        "pixel_accuracy": of("MulticlassAccuracy", "micro"),
        "recall": of("MulticlassRecall", None),
        "mean_accuracy": of("MulticlassAccuracy", "macro"),
        "precision": of("MulticlassPrecision", None),
        "iou": of("MulticlassJaccardIndex", None),
        "miou": of("MulticlassJaccardIndex", "macro"),
        "fw_iou": of("MulticlassJaccardIndex", "weighted"),
        "dice": of("MulticlassF1Score", None),
        "mean_dice": of("MulticlassF1Score", "macro"),
        "confusion": classification.MulticlassConfusionMatrix(CLASSES, ignore_index=ignore_index)(
            prediction, target
        ).double(),
    }


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("labels", [False, True], ids=["logits", "labels"])
def test_equals_torchmetrics(ignore_index, labels, device):
    logits, target = batch(ignore=ignore_index)
    prediction = (logits.argmax(1) if labels else logits).to(device)
    metric = SegmentationMetrics(CLASSES, ignore_index)
    for part in (slice(0, 1), slice(1, 3)):
        metric.update(prediction[part], target[part].to(device))
    found = metric.compute()
    expected = by_torchmetrics(logits, target, ignore_index)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double().cpu(), value, rtol=1e-6, atol=1e-7, msg=name)
    check_equal(functional.segmentation_metrics(prediction, target.to(device), CLASSES, ignore_index), found)


def test_absent_classes_have_no_score():
    target = torch.tensor([[0, 0, 1, 1]])
    prediction = torch.tensor([[0, 3, 1, 1]])
    found = functional.segmentation_metrics(prediction, target, 5)
    nan = float("nan")
    expected = {
        "iou": [0.5, 1, nan, 0, nan],
        "dice": [2 / 3, 1, nan, 0, nan],
        "recall": [0.5, 1, nan, nan, nan],
        "precision": [1, 1, nan, 0, nan],
        "miou": 0.5,
        "mean_dice": 5 / 9,
        "mean_accuracy": 0.75,
        "pixel_accuracy": 0.75,
        "fw_iou": 0.75,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(value, dtype=torch.float64), equal_nan=True, msg=name)
    nothing = SegmentationMetrics(5).compute()
    assert nothing["miou"].isnan()
    assert nothing["confusion"].sum() == 0


def test_lists_of_sizes_reset_and_the_caller_owns_the_result():
    parts = [batch(1, seed=s) for s in range(2)] + [(make_logits((1, CLASSES, 1, 1)), torch.zeros(1, 1, 1).long())]
    metric = SegmentationMetrics(CLASSES)
    metric.update([p for p, _ in parts], [t for _, t in parts])
    found = metric.compute()
    assert torch.equal(found["confusion"], sum(segops.confusion_matrix(p, t) for p, t in parts))
    found["confusion"].zero_()
    assert metric.compute()["confusion"].sum() == 2 * 13 * 17 + 1
    metric.reset()
    assert metric.compute()["confusion"].sum() == 0


def test_real_labels():
    """A label map that is moved a little, as a prediction that errs along the borders."""
    metric = SegmentationMetrics(12, ignore_index=11)
    targets = [torch.from_numpy(grey(path)) for path in files("camvid/valannot/*.png", 4)]
    metric.update([t.roll(2, 1) for t in targets], targets)
    found = metric.compute()
    keep = torch.stack(targets) != 11
    predicted = torch.stack([t.roll(2, 1) for t in targets])
    assert found["confusion"].sum() == keep.sum()
    hit = (predicted == torch.stack(targets)) & keep
    torch.testing.assert_close(found["pixel_accuracy"], hit.sum().double() / keep.sum())
    assert 0.5 < found["miou"] < found["pixel_accuracy"] < 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2.5,), TypeError, "num_classes must be an int, got float"),
        ((True,), TypeError, "num_classes must be an int, got bool"),
        ((0,), ValueError, "num_classes must be at least 1, got 0"),
    ],
)
def test_constructor_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        SegmentationMetrics(*arguments)


def test_bad_batches_count_nothing():
    metric = SegmentationMetrics(CLASSES)
    logits, target = batch()
    bad = target.clone()
    bad[1, 2, 3] = CLASSES
    for arguments, error, message in (
        ((logits, bad), ValueError, "outside"),
        (([logits, logits], [target, bad]), ValueError, "outside"),
        ((logits[:, :4], target), ValueError, "num_classes must be 4"),
        ((logits, target[:1]), ValueError, "target must be"),
        (([logits], [target, target]), ValueError, "lists of as many, got a list of 1 and a list of 2"),
        ((logits, [target]), ValueError, "two tensors, or two lists"),
        (([], []), ValueError, "two tensors, or two lists"),
        ((logits.numpy(), target), TypeError, "prediction must be a tensor"),
    ):
        with pytest.raises(error, match=message):
            metric.update(*arguments)
    assert metric.compute()["confusion"].sum() == 0


def test_logits_with_gradient_leave_no_graph():
    logits, target = batch()
    metric = SegmentationMetrics(CLASSES)
    metric.update(logits.requires_grad_(), target)
    assert not metric.compute()["miou"].requires_grad


def test_coherent_labels_predicted_perfectly():
    target = coherent_labels((2, 31, 29), CLASSES)
    found = functional.segmentation_metrics(target, target, CLASSES)
    assert found["miou"] == found["mean_dice"] == found["pixel_accuracy"] == 1
