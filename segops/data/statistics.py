"""How often classes occur, and class weights that follow from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class ClassStatistics(NamedTuple):
    """
    Attributes:
        pixels: int64 [K], pixels of each class.
        images: int64 [K], images in which it occurs.
        around: int64 [K], all pixels of these images that count.
    """

    pixels: Tensor
    images: Tensor
    around: Tensor

    def median_frequency_weights(self) -> Tensor:
        """The median of the classes' frequencies over that of each, float32 [K]; 0 for a class that never occurs.

        The frequency of a class is its share of the pixels of the images that have it (Eigen, Fergus, "Predicting
        depth, surface normals and semantic labels with a common multi-scale convolutional architecture", ICCV 2015).
        """
        there = self.pixels > 0
        frequency = self.pixels[there].double() / self.around[there]
        weights = torch.zeros(len(self.pixels), dtype=torch.float64)
        if len(frequency):
            weights[there] = frequency.quantile(0.5) / frequency
        return weights.float()

    def inverse_frequency_weights(self) -> Tensor:
        """One over each class's share of all pixels, scaled to a mean of 1; float32 [K], 0 for absent classes."""
        there = self.pixels > 0
        inverse = 1 / self.pixels[there].double()
        weights = torch.zeros(len(self.pixels), dtype=torch.float64)
        weights[there] = inverse * len(inverse) / inverse.sum()
        return weights.float()


def class_statistics(dataset: Any) -> ClassStatistics:
    """Count the pixels of each class; two classes, 0 and 1, where `num_classes` is 1.

    Args:
        dataset: with `num_classes` and `ignore_index`, items (image, mask), and a method ``mask(index)`` if the masks
            can be had alone.

    Raises:
        ValueError: a label out of range, with the item it is in.
    """
    classes, ignore = max(dataset.num_classes, 2), dataset.ignore_index
    pixels, images, around = torch.zeros(3, classes, dtype=torch.int64).unbind()
    for index in range(len(dataset)):
        labels = (dataset.mask(index) if hasattr(dataset, "mask") else dataset[index][1]).long().flatten()
        if ignore is not None:
            labels = labels[labels != ignore]
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise ValueError(
                f"class_statistics: labels must be in 0 .. {classes - 1}, item {index} has {int(labels.min())} .. "
                f"{int(labels.max())}"
            )
        counts = labels.bincount(minlength=classes)
        pixels += counts
        images += counts > 0
        around += (counts > 0) * len(labels)
    return ClassStatistics(pixels, images, around)
