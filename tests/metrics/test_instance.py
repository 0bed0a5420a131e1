"""InstanceAP against pycocotools, and matching by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segops.metrics import InstanceAP, functional
from segops.metrics.instance import COCO_THRESHOLDS

NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]


def scenes(seed, images=6, classes=3, size=(120, 140), crowd=0.15, most=7):
    """Boxes, and detections that are moved boxes, duplicates and others; some scores are equal."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []

    def masks_of(boxes):
        masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (y, x, h, w) in zip(masks, boxes, strict=True):
            mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
        return masks

    for _ in range(images):
        number = rng.integers(0, most)
        boxes = [(*rng.integers(0, 90, 2), *rng.integers(4, 110, 2)) for _ in range(number)]
        labels = rng.integers(0, classes, number)
        detected, detected_labels = [], []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(rng.integers(0, 4)):
                shift = rng.integers(-6, 7, 4)
                detected.append((box[0] + shift[0], box[1] + shift[1], *np.maximum(box[2:] + shift[2:], 1)))
                detected_labels.append(label if rng.random() < 0.9 else rng.integers(0, classes))
        for _ in range(rng.integers(0, 3)):
            detected.append((*rng.integers(0, 90, 2), *rng.integers(4, 60, 2)))
            detected_labels.append(rng.integers(0, classes))
        predictions.append(
            {
                "masks": masks_of(detected),
                "scores": torch.from_numpy(rng.integers(1, 20, len(detected)) / 20),
                "labels": torch.tensor(np.array(detected_labels, dtype=np.int64)),
            }
        )
        targets.append(
            {
                "masks": masks_of(boxes),
                "labels": torch.from_numpy(labels),
                "iscrowd": torch.from_numpy(rng.random(number) < crowd),
            }
        )
    return predictions, targets


def encoded(predictions, targets, classes):
    """What pycocotools works on: its data set, masks encoded by run lengths, and its detections."""
    coder = pytest.importorskip("pycocotools.mask")

    def encode(mask):
        return coder.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    objects, detections = [], []
    for image, (prediction, target) in enumerate(zip(predictions, targets, strict=True), start=1):
        for mask, label, crowd in zip(target["masks"], target["labels"], target["iscrowd"], strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "iscrowd": int(crowd),
                    "area": float(mask.sum()),
                    "segmentation": encode(mask),
                }
            )
        for mask, label, score in zip(prediction["masks"], prediction["labels"], prediction["scores"], strict=True):
            detections.append(
                {"image_id": image, "category_id": int(label), "score": float(score), "segmentation": encode(mask)}
            )
    dataset = {
        "info": {},
        "images": [
            {"id": i + 1, "height": t["masks"].shape[1], "width": t["masks"].shape[2]} for i, t in enumerate(targets)
        ],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": objects,
    }
    return dataset, detections


def by_pycocotools(dataset, detections):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    truth = coco.COCO()
    truth.dataset = dataset
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes([dict(one) for one in detections]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats, strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("crowd", [0, 0.4])
def test_equals_pycocotools(seed, crowd, device):
    predictions, targets = scenes(seed, crowd=crowd)
    expected = by_pycocotools(*encoded(predictions, targets, 3))
    metric = InstanceAP(3)
    on_device = [[{k: v.to(device) for k, v in image.items()} for image in images] for images in (predictions, targets)]
    for part in (slice(0, 2), slice(2, 6)):
        metric.update(on_device[0][part], on_device[1][part])
    found = metric.compute()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-9), name
    again = functional.instance_ap(*on_device, 3)
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_more_than_a_hundred_detections():
    rng = np.random.default_rng(0)
    predictions, targets = scenes(1, images=2, classes=1, crowd=0)
    masks = predictions[0]["masks"].repeat(40, 1, 1)
    assert len(masks) > 100
    predictions[0] = {
        "masks": masks,
        "scores": torch.from_numpy(rng.random(len(masks))),
        "labels": torch.zeros(len(masks), dtype=torch.int64),
    }
    expected = by_pycocotools(*encoded(predictions, targets, 1))
    found = functional.instance_ap(predictions, targets, 1)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-9), name


def test_thresholds_are_those_of_coco():
    assert list(COCO_THRESHOLDS) == np.linspace(0.5, 0.95, 10).tolist()


def strip(*parts):
    masks = torch.zeros(len(parts), 1, 20, dtype=torch.bool)
    for mask, (begin, end) in zip(masks, parts, strict=True):
        mask[0, begin:end] = True
    return masks


def by_hand():
    """Objects of 10, 4 and 4 pixels, the last a crowd; IoU 0.8, 1 (a duplicate), nothing, inside the crowd twice."""
    target = {"masks": strip((0, 10), (10, 14), (16, 20)), "labels": torch.zeros(3).long()}
    target["iscrowd"] = torch.tensor([0, 0, 1])
    prediction = {
        "masks": strip((0, 8), (0, 10), (14, 15), (16, 18), (17, 20)),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]),
        "labels": torch.zeros(5).long(),
    }
    return prediction, target


def test_matches_by_hand():
    prediction, target = by_hand()
    found = functional.instance_matches(prediction, target, 0.5)
    assert found["matched"].tolist() == [0, -1, -1, 2, 2]
    assert found["true_positive"].tolist() == [True, False, False, False, False]
    assert found["false_positive"].tolist() == [False, True, True, False, False]
    assert found["ignored"].tolist() == [False, False, False, True, True]
    assert found["false_negative"].tolist() == [False, True, False]
    assert torch.equal(found["tp_masks"], strip((0, 8)))
    assert torch.equal(found["fp_masks"], strip((0, 10), (14, 15)))
    assert torch.equal(found["fn_masks"], strip((10, 14)))
    strict = functional.instance_matches(prediction, target, 0.9)
    assert strict["true_positive"].tolist() == [False, True, False, False, False]
    metric = InstanceAP(1)
    metric.update([prediction], [target])
    (again,) = metric.matches(0.5)
    assert all(torch.equal(found[name], value) for name, value in again.items())


def test_curve_by_hand():
    prediction, target = by_hand()
    prediction["masks"] = strip((0, 8), (0, 10), (10, 14), (16, 18), (17, 20))
    metric = InstanceAP(2)
    metric.update([prediction], [target])
    curve = metric.pr_curve(0.5, 0)
    assert curve["true_positive"].tolist() == [True, False, True]
    torch.testing.assert_close(curve["precision"], torch.tensor([1, 1 / 2, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(curve["recall"], torch.tensor([0.5, 0.5, 1], dtype=torch.float64))
    assert curve["objects"] == 2
    for name, value in {
        "ap_step": 0.5 + 0.5 * 2 / 3,
        "ap_envelope": 0.5 + 0.5 * 2 / 3,
        "ap_11_point": (6 + 5 * 2 / 3) / 11,
        "ap_101_point": (51 + 50 * 2 / 3) / 101,
    }.items():
        assert float(curve[name]) == pytest.approx(value), name
    nothing = metric.pr_curve(0.5, 1)
    assert nothing["ap_step"].isnan()
    assert nothing["objects"] == len(nothing["scores"]) == 0


def test_curve_has_the_area_of_coco():
    predictions, targets = scenes(3)
    metric = InstanceAP(3)
    metric.update(predictions, targets)
    areas = torch.stack([metric.pr_curve(0.5, label)["ap_101_point"] for label in range(3)])
    torch.testing.assert_close(areas.mean(), metric.compute()["AP50"])


def test_of_equal_overlaps_the_last_object_is_taken():
    target = {"masks": strip((0, 4), (0, 4)), "labels": torch.zeros(2).long()}
    prediction = {"masks": strip((0, 4)), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
    assert functional.instance_matches(prediction, target, 0.5)["matched"].tolist() == [1]


@pytest.mark.parametrize("detections", [0, 3])
@pytest.mark.parametrize("objects", [0, 2])
def test_empty_parts(detections, objects):
    prediction = {
        "masks": torch.ones(detections, 2, 3, dtype=torch.bool),
        "scores": torch.ones(detections),
        "labels": torch.zeros(detections).long(),
    }
    target = {"masks": torch.ones(objects, 2, 3, dtype=torch.bool), "labels": torch.zeros(objects).long()}
    found = functional.instance_ap([prediction], [target], 2)
    assert found["AP"] == (-1 if not objects else 1 if detections else 0)
    found = functional.instance_matches(prediction, target, 0.5)
    assert found["true_positive"].sum() == min(detections, objects)
    assert found["false_negative"].sum() == objects - min(detections, objects)


def test_nothing_and_reset():
    metric = InstanceAP(2)
    assert metric.compute()["AP"] == -1
    metric.update(*scenes(0, classes=2))
    assert metric.compute()["AP"] > 0
    metric.reset()
    assert metric.compute()["AP"] == -1
    assert metric.matches(0.5) == []


def test_given_area_tells_the_range():
    prediction, target = by_hand()
    target["area"] = torch.tensor([2000.0, 2000.0, 4.0])
    found = functional.instance_ap([prediction], [target], 1)
    assert found["AP_small"] == -1
    assert found["AP_medium"] >= 0


def changed(part, key, value):
    prediction, target = by_hand()
    (prediction if part == "prediction" else target)[key] = value
    return [prediction], [target]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (changed("prediction", "masks", torch.ones(5, 1, 20)), TypeError, "masks must be bool, got float32"),
        (changed("prediction", "masks", None), TypeError, r"predictions\[0\]: masks must be a tensor, got NoneType"),
        (changed("target", "labels", torch.ones(5).long().to_sparse()), TypeError, "labels must be a dense tensor"),
        (changed("prediction", "scores", torch.ones(4)), ValueError, r"scores must be \[5\]"),
        (changed("prediction", "scores", torch.ones(5).long()), TypeError, "scores must be floating point, got int64"),
        (changed("prediction", "scores", torch.full((5,), torch.nan)), ValueError, "scores must not be NaN"),
        (changed("prediction", "labels", torch.ones(5)), TypeError, "labels must be integers"),
        (
            changed("prediction", "labels", torch.full((5,), 1)),
            ValueError,
            r"labels of predictions must be in \[0, 1\)",
        ),
        (changed("target", "labels", torch.full((3,), -1)), ValueError, r"labels of targets must be in \[0, 1\)"),
        (changed("target", "masks", torch.ones(3, 2, 20).bool()), ValueError, r"of the size .*\[1, 20\].*\[2, 20\]"),
        (changed("target", "iscrowd", torch.ones(3)), TypeError, "iscrowd must be bool or integers"),
        (([{}], []), ValueError, "as many targets as predictions, got 0, 1"),
        (({}, {}), TypeError, "predictions must be a list of dicts, got dict"),
    ],
)
def test_bad_batches_add_nothing(batch, error, message):
    metric = InstanceAP(1)
    with pytest.raises(error, match=message):
        metric.update(*batch)
    assert metric.compute()["AP"] == -1


def test_bad_options():
    for options, error, message in (
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"num_classes": 1, "iou_thresholds": [0]}, ValueError, r"iou_thresholds must be in \(0, 1\], got 0"),
        ({"num_classes": 1, "iou_thresholds": []}, ValueError, "at least one"),
        ({"num_classes": 1, "area_ranges": {"small": (0, 1)}}, ValueError, '"all"'),
    ):
        with pytest.raises(error, match=message):
            InstanceAP(**options)
    for arguments, error in (((1.5, 0), ValueError), (("0.5", 0), TypeError), ((0.5, 1), ValueError)):
        with pytest.raises(error):
            InstanceAP(1).pr_curve(*arguments)
