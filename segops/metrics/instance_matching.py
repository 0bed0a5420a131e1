"""Detections matched to objects by COCO's rules: many images, thresholds and ranges of areas at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Of one label in one image, by score.
MAX_DETECTIONS = 100
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
