"""saliency_maps: what the pixels of saliency maps tell :mod:`segops.metrics`. Of CPU tensors alone, and not public.

Its reference, which serves every other device, is :func:`segops.metrics.saliency_maps.observe_tensors`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segops._library import define_op

OP = "saliency_maps"
LEVELS = 256
#: Distances are exact up to this one, which stands for all larger ones.
REACH = 255
#: The numbers of a map, in the order of csrc/include/segops/saliency_maps.h, and the shape of each.
FIELDS: dict[str, tuple[int, ...]] = {
    "bad": (),
    "pixels": (),
    "mean": (),
    "lost": (),
    "weighted": (),
    "above": (2,),
    "counts": (4, 2),
    "total": (4, 2),
    "square": (4, 2),
    "first": (4,),
    "misses": (LEVELS,),
    "hits": (LEVELS,),
}
_SIZES = [torch.Size(shape).numel() for shape in FIELDS.values()]


def _fake(prediction: Tensor, target: Tensor, nearness: Tensor, normalize: bool) -> Tensor:
    return prediction.new_empty((prediction.shape[0], sum(_SIZES)), dtype=torch.float64)


define_op(f"{OP}(Tensor prediction, Tensor target, Tensor nearness, bool normalize) -> Tensor", _fake)


def saliency_maps(prediction: Tensor, target: Tensor, nearness: Tensor, normalize: bool) -> dict[str, Tensor]:
    """What N maps tell, each on one thread.

    Args:
        prediction: [N, H, W] with at least one pixel: uint8, of which 255 is 1, or floating point.
        target: bool [N, H, W], the foreground.
        nearness: float64 [REACH^2 + 1 or more], the weight of an error by its squared distance from the foreground.
        normalize: stretch each map to [0, 1], unless it has one value.

    Returns:
        float64 [N, *shape] for each of `FIELDS`. `bad` is 1 for a map with values outside [0, 1] or NaN, of which
        nothing else is told; :class:`segops.metrics.saliency_maps.Observed` says what the others are.
    """
    found = torch.ops.segops.saliency_maps(prediction, target.view(torch.uint8), nearness, normalize)
    parts = found.split(_SIZES, 1)
    return {name: part.view(len(prediction), *FIELDS[name]) for name, part in zip(FIELDS, parts, strict=True)}
