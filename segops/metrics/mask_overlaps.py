"""IoU of pairs of masks: on the CPU by a kernel (:mod:`segops.ops.mask_overlaps`), on other devices by products."""

from __future__ import annotations

import torch
from torch import Tensor

from segops import backends
from segops.ops.mask_overlaps import mask_overlaps

#: Pixels of all masks read at a time.
_ELEMENTS = 1 << 21


def overlaps(masks: Tensor, objects: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU [K, M] of masks [K, H, W] and [M, H, W], and the areas of both; float64.

    Of an object that is a crowd (bool [M]), the share of the detection that it covers.
    """
    native = masks.device.type == "cpu" and backends.resolve(None, masks.device) == "native"
    both, areas, object_areas = (mask_overlaps if native else count_by_products)(masks.flatten(1), objects.flatten(1))
    union = areas[:, None] + object_areas - both
    # Nothing is common to empty masks.
    return both / torch.where(crowd, areas[:, None], union).clamp(min=1), areas, object_areas


def count_by_products(detections: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`mask_overlaps` counts, on any device. Exact: sums of at most 2^24 ones."""
    both = torch.zeros(len(detections), len(objects), dtype=torch.float64, device=detections.device)
    length = min(max(_ELEMENTS // max(len(detections) + len(objects), 1), 1), 1 << 24)
    for d, o in zip(detections.split(length, 1), objects.split(length, 1), strict=True):
        both += d.float() @ o.float().T
    return both, detections.sum(1).double(), objects.sum(1).double()
