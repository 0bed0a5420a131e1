"""Semantic segmentation: everything that a confusion matrix tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segops.metrics.sums import SummedMetric
from segops.ops.confusion_matrix import confusion_matrix


class SegmentationMetrics(SummedMetric):
    """Accuracies, IoU and Dice of label maps, over all pixels of all updates (not means of images).

    Args:
        num_classes: C.
        ignore_index: label of pixels that count nowhere.

    Raises:
        TypeError, ValueError: a number of classes that is none.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        self.num_classes = checked_classes(num_classes, "SegmentationMetrics")
        self.ignore_index = ignore_index

    def update(self, prediction: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> None:
        """Count a batch. Never waits for a device.

        Args:
            prediction: logits [N, C, *spatial] or a label map of the target's shape, as
                :func:`segops.confusion_matrix` takes them; or a list of such tensors of different sizes.
            target: labels in [0, C) or `ignore_index`; a list for a list.

        Raises:
            TypeError, ValueError: see :func:`segops.confusion_matrix`; nothing of the batch is counted then. Bad
                labels on a CUDA device count as ignored, and are reported as that function does.
        """
        self._add(_confusion(prediction, target, self.num_classes, self.ignore_index))

    def compute(self) -> dict[str, Tensor]:
        """The dict of :func:`segops.metrics.functional.segmentation_metrics`, of everything since the last reset."""
        return scores(self._sums())

    def _empty(self) -> Tensor:
        return torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)


def segmentation_metrics(
    prediction: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    num_classes: int,
    ignore_index: int | None = None,
) -> dict[str, Tensor]:
    """Accuracies, IoU and Dice of one batch, from its confusion matrix n_ij (label i, predicted j; t_i = sum_j n_ij).

    After Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015, section 5).

    Args:
        prediction, target, num_classes, ignore_index: as :class:`segops.metrics.SegmentationMetrics` takes them.

    Returns:
        float64 but for the counts, on the device of the inputs:

        * confusion: int64 [C, C].
        * pixel_accuracy: sum n_ii / sum t_i.
        * recall [C]: n_ii / t_i, and mean_accuracy, its mean.
        * precision [C]: n_ii / sum_j n_ji.
        * iou [C]: n_ii / (t_i + sum_j n_ji - n_ii), and miou, its mean.
        * dice [C]: 2 n_ii / (t_i + sum_j n_ji), and mean_dice, its mean.
        * fw_iou: sum t_i iou_i / sum t_i.

        What is divided by zero is NaN, and means leave it out: a class that is neither there nor predicted has no IoU.

    Raises:
        TypeError, ValueError: see :func:`segops.confusion_matrix`.
    """
    classes = checked_classes(num_classes, "functional.segmentation_metrics")
    return scores(_confusion(prediction, target, classes, ignore_index))


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """What :func:`segmentation_metrics` returns, from int64 counts [C, C]."""
    counts = confusion.double()
    hits, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    pixels = labelled.sum()
    recall, iou, dice = hits / labelled, hits / (labelled + predicted - hits), 2 * hits / (labelled + predicted)
    return {
        "confusion": confusion.clone(),
        "pixel_accuracy": hits.sum() / pixels,
        "mean_accuracy": recall.nanmean(),
        "iou": iou,
        "miou": iou.nanmean(),
        "fw_iou": (labelled * iou).nansum() / pixels,
        "dice": dice,
        "mean_dice": dice.nanmean(),
        "precision": hits / predicted,
        "recall": recall,
    }


def checked_classes(num_classes: Any, name: str) -> int:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"segops.metrics.{name}: num_classes must be an int, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"segops.metrics.{name}: num_classes must be at least 1, got {num_classes}")
    return num_classes


def _confusion(prediction: Any, target: Any, num_classes: int, ignore_index: int | None) -> Tensor:
    lists = [isinstance(x, Sequence) and not isinstance(x, str) for x in (prediction, target)]
    if not any(lists):
        return confusion_matrix(prediction, target, num_classes, ignore_index)
    if not all(lists) or len(prediction) != len(target) or not prediction:
        raise ValueError(
            "segops.metrics: prediction and target must be two tensors, or two lists of as many, got "
            f"{_described(prediction)} and {_described(target)}"
        )
    return torch.stack(
        [confusion_matrix(p, t, num_classes, ignore_index) for p, t in zip(prediction, target, strict=True)]
    ).sum(0)


def _described(x: Any) -> str:
    return f"a {type(x).__name__} of {len(x)}" if isinstance(x, Sequence) else f"a {type(x).__name__}"
