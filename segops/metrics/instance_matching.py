"""Detections matched to objects by COCO's rules: many images, thresholds and ranges of areas at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Of one label in one image, by score.
MAX_DETECTIONS = 100
#: Pairs (detection, object) of both masks read at a time, in elements.
_ELEMENTS = 1 << 21
_CAN_COUNT_BITS = hasattr(np, "bitwise_count")  # of NumPy 2
#: Groups matched at a time: less is padded where they are of one size.
_GROUPS = 256


class Image(NamedTuple):
    """What is kept of an image with K detections and M objects: no masks."""

    iou: Tensor  # float64 [K, M]; of a crowd, the share of the detection
    scores: Tensor  # [K]
    labels: Tensor  # [K]
    areas: Tensor  # float64 [K]
    object_labels: Tensor  # [M]
    object_areas: Tensor  # float64 [M]
    crowd: Tensor  # bool [M]


class Group(NamedTuple):
    """Detections and objects of one label in one image, the detections by falling score."""

    image: int
    label: int
    detections: Tensor  # their indices in the image, [D]
    objects: Tensor  # [G]
    iou: Tensor  # [D, G]
    scores: Tensor  # float64 [D]
    areas: Tensor
    object_areas: Tensor
    crowd: Tensor


class Matched(NamedTuple):
    """Of a group, for A ranges of areas and T thresholds."""

    object: Tensor  # int64 [A, T, D], of the group, or -1
    hit: Tensor  # bool [A, T, D], a true positive
    ignored: Tensor  # bool [A, T, D], neither true nor false positive
    counted: Tensor  # bool [A, G], the objects to be found


def overlaps(masks: Tensor, objects: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU [K, M] of masks [K, H, W] and [M, H, W], and the areas of both; float64. Exact: sums of at most 2^24 ones."""
    detections, objects = masks.flatten(1), objects.flatten(1)
    both, areas, object_areas = (_counts_of_bits if _CAN_COUNT_BITS and masks.device.type == "cpu" else _counts)(
        detections, objects
    )
    union = areas[:, None] + object_areas - both
    # Nothing is common to empty masks.
    return both / torch.where(crowd, areas[:, None], union).clamp(min=1), areas, object_areas


def _counts(detections: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [K, M] that masks [K, P] and [M, P] have in common, and those of each."""
    both = torch.zeros(len(detections), len(objects), dtype=torch.float64, device=detections.device)
    length = min(max(_ELEMENTS // max(len(detections) + len(objects), 1), 1), 1 << 24)
    for d, o in zip(detections.split(length, 1), objects.split(length, 1), strict=True):
        both += d.float() @ o.float().T
    return both, detections.sum(1).double(), objects.sum(1).double()


def _counts_of_bits(detections: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_counts` on a CPU, eight pixels a byte."""
    some, others = (np.packbits(masks.numpy(), axis=1) for masks in (detections, objects))
    both = np.empty((len(some), len(others)))
    for i, other in enumerate(others):
        both[:, i] = np.bitwise_count(some & other).sum(1)
    areas, object_areas = (np.bitwise_count(bits).sum(1).astype(np.float64) for bits in (some, others))
    return torch.from_numpy(both), torch.from_numpy(areas), torch.from_numpy(object_areas)


def groups_of(images: Sequence[Image], label: int | None = None) -> list[Group]:
    """All groups of CPU tensors, or those of one label, by image and label."""
    groups = []
    for number, image in enumerate(images):
        scores = image.scores.double()
        order = torch.sort(scores, descending=True, stable=True).indices
        labels = image.labels[order]
        for value in sorted({*image.labels.tolist(), *image.object_labels.tolist()} if label is None else {label}):
            chosen = order[labels == value][:MAX_DETECTIONS]
            objects = (image.object_labels == value).nonzero().squeeze(1)
            groups.append(
                Group(
                    number,
                    value,
                    chosen,
                    objects,
                    image.iou[chosen][:, objects],
                    scores[chosen],
                    image.areas[chosen],
                    image.object_areas[objects],
                    image.crowd[objects],
                )
            )
    return groups


def match(groups: Sequence[Group], thresholds: Sequence[float], ranges: Sequence[tuple[float, float]]) -> list[Matched]:
    """The groups' matches, in their order."""
    by_size = sorted(range(len(groups)), key=lambda i: (len(groups[i].detections), len(groups[i].objects)))
    found: list[Matched] = [None] * len(groups)  # type: ignore[list-item]
    for begin in range(0, len(groups), _GROUPS):
        chosen = by_size[begin : begin + _GROUPS]
        for i, matched in zip(chosen, _match([groups[i] for i in chosen], thresholds, ranges), strict=True):
            found[i] = matched
    return found


def _match(
    groups: Sequence[Group], thresholds: Sequence[float], ranges: Sequence[tuple[float, float]]
) -> list[Matched]:
    """Greedily in the order of scores: the free object with the largest IoU, of equal ones the last.

    Objects that do not count (crowds, areas out of range) are taken only where no other is; a crowd is never used up.
    """
    detections = max(len(group.detections) for group in groups)
    objects = max(1, *(len(group.objects) for group in groups))
    iou = torch.full((len(groups), detections, objects), -1.0, dtype=torch.float64)
    area = torch.full((len(groups), objects), -1.0, dtype=torch.float64)
    crowd = torch.zeros(len(groups), objects, dtype=torch.bool)
    for i, group in enumerate(groups):
        iou[i, : len(group.detections), : len(group.objects)] = group.iou
        area[i, : len(group.objects)] = group.object_areas
        crowd[i, : len(group.objects)] = group.crowd
    low, high = torch.tensor(ranges, dtype=torch.float64).unbind(1)
    counted = (area[:, None] >= low[:, None]) & (area[:, None] <= high[:, None]) & ~crowd[:, None]  # [B, A, G]
    least = torch.tensor(thresholds, dtype=torch.float64).clamp(max=1 - 1e-10)[:, None]
    number = torch.arange(1, objects + 1)
    free = torch.ones(len(groups), len(ranges), len(thresholds), objects, dtype=torch.bool)
    taken = torch.full((len(groups), len(ranges), len(thresholds), detections), -1)
    for detection in range(detections):
        overlap = iou[:, None, None, detection]  # [B, 1, 1, G]
        fit = free & (overlap >= least)
        real = fit & counted[:, :, None]
        fit = torch.where(real.any(-1, keepdim=True), real, fit)
        best = torch.where(fit, overlap, -1.0).amax(-1, keepdim=True)
        last = (number * (fit & (overlap == best))).amax(-1)
        taken[..., detection] = last - 1
        free &= (last[..., None] != number) | crowd[:, None, None]
    results = []
    for i, group in enumerate(groups):
        size, of_group = len(group.detections), counted[i, :, : len(group.objects)]
        chosen = taken[i, ..., :size]
        matched = chosen >= 0
        outside = (group.areas < low[:, None]) | (group.areas > high[:, None])  # [A, D]
        counts = counted[i][:, None].expand(*chosen.shape[:2], -1).gather(2, chosen.clamp(min=0))
        ignored = torch.where(matched, ~counts, outside[:, None])
        results.append(Matched(chosen, matched & ~ignored, ignored, of_group))
    return results
