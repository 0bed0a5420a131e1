"""mask_overlaps: pixels that pairs of masks have in common, for :mod:`segops.metrics`. Of the CPU alone, not public.

Its reference, which serves every other device, is :func:`segops.metrics.mask_overlaps.count_by_products`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segops._library import define_op

OP = "mask_overlaps"


def _fake(detections: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (len(detections), len(objects)), (len(detections),), (len(objects),)
    both, areas, object_areas = (detections.new_empty(shape, dtype=torch.float64) for shape in shapes)
    return both, areas, object_areas


define_op(f"{OP}(Tensor detections, Tensor objects) -> (Tensor both, Tensor areas, Tensor object_areas)", _fake)


def mask_overlaps(detections: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [K, M] that masks [K, P] and [M, P], bool, have in common, and those of each: [K] and [M]; float64."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.segops.mask_overlaps(
        detections.view(torch.uint8), objects.view(torch.uint8)
    )
    return found
