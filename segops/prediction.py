"""Label maps of images from a trained network, without logits at the size of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segops.models.model import SegmentationModel
from segops.ops.upsample_argmax import upsample_argmax
from segops.ops.upsample_arguments import output_size
from segops.ops.upsample_bilinear import upsample_bilinear2d

OP = "predict"


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    size: int | Sequence[int] | None = None,
    tile: int | Sequence[int] | None = None,
    overlap: float = 0.25,
    threshold: float = 0.5,
) -> Tensor:
    """The label of each pixel, by `model` in eval mode; every module's training mode is restored.

    The logits are those of :meth:`segops.models.SegmentationModel.coarse_logits`, or what another module returns: a
    tensor, the item "out" of a mapping (torchvision), or the first of a list. :func:`segops.upsample_argmax` brings
    them to `size` as labels, so that logits of that size never exist unless the module makes them itself.

    With `tile`, equal tiles in rows and columns, the outer ones at the image's borders, go through the model one
    position after the other. Their logits are interpolated to the tile's size and averaged with weights that fall
    linearly over the overlap towards a tile's edges, so these do exist once, at the size of the image. An image that
    one tile covers is not tiled; an axis shorter than the tile is taken whole.

    Args:
        model: from images to logits [N, K, h, w].
        images: [N, C, H, W], floating-point, as the model takes them; their memory format goes into the model.
        size: H' and W' of the result, or one number for both; by default those of the images.
        tile: pixels of a tile's sides, or one number for both.
        overlap: of neighbouring tiles, at least this fraction of a tile's side, in [0, 1).
        threshold: of the probability, in (0, 1), where K = 1.

    Returns:
        [N, H', W'], uint8 for up to 256 classes and int64 for more; for K = 1 bool, where the interpolated logit's
        sigmoid is above `threshold`.

    Raises:
        TypeError: images that are no floating-point tensor, a model without logits.
        ValueError: an argument of the wrong shape or range.
    """
    _check(images, overlap, threshold)
    height, width = images.shape[-2:]
    wanted = (height, width) if size is None else output_size(OP, size)
    tile_h, tile_w = (height, width) if tile is None else output_size(OP, tile)
    tile_h, tile_w = min(tile_h, height), min(tile_w, width)
    with _evaluating(model):
        if (tile_h, tile_w) == (height, width):
            logits, align_corners = final_logits(model, images)
        else:
            logits, align_corners = _blended(model, images, tile_h, tile_w, overlap), False
    return labels_of(logits, wanted, align_corners, threshold)


def labels_of(logits: Tensor, size: tuple[Any, Any], align_corners: bool, threshold: float = 0.5) -> Tensor:
    """What :func:`predict` returns for logits [N, K, h, w] that stand for their interpolation to `size`."""
    if logits.shape[1] > 1:
        labels = upsample_argmax(logits, size, align_corners, torch.uint8 if logits.shape[1] <= 256 else torch.int64)
        assert isinstance(labels, Tensor)
        return labels
    above = logits - math.log(threshold / (1 - threshold))
    mask = upsample_argmax(torch.cat((torch.zeros_like(above), above), 1), size, align_corners)
    assert isinstance(mask, Tensor)
    return mask.bool()


def _check(images: Any, overlap: float, threshold: float) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"segops.{OP}: images must be a floating-point tensor, got {kind}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"segops.{OP}: images must be [N, C, H, W] with pixels, got {list(images.shape)}")
    if not 0 <= overlap < 1:
        raise ValueError(f"segops.{OP}: overlap must be in [0, 1), got {overlap!r}")
    if not 0 < threshold < 1:
        raise ValueError(f"segops.{OP}: threshold must be in (0, 1), got {threshold!r}")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def final_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, bool]:
    """The finest logits [N, K, h, w] of a model before its last interpolation, and that one's align_corners.

    Raises:
        TypeError: a model that returns none.
    """
    if isinstance(model, SegmentationModel):
        return model.coarse_logits(images)[0], model.align_corners
    output = model(images)
    if isinstance(output, Mapping):
        output = output.get("out")
    elif isinstance(output, (list, tuple)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 4:
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"segops.{OP}: model must return logits [N, K, h, w], alone, first or as 'out', got {what}")
    return output, False


def _blended(model: nn.Module, images: Tensor, tile_h: int, tile_w: int, overlap: float) -> Tensor:
    height, width = images.shape[-2:]
    rows, columns = _starts(height, tile_h, overlap), _starts(width, tile_w, overlap)
    weight = _hat(tile_h, overlap, images)[:, None] * _hat(tile_w, overlap, images)
    total: Tensor | None = None
    weights = weight.new_zeros(height, width)
    for top in rows:
        for left in columns:
            inside = (..., slice(top, top + tile_h), slice(left, left + tile_w))
            logits, align_corners = final_logits(model, images[inside])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = upsample_bilinear2d(logits, (tile_h, tile_w), align_corners=align_corners)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[inside] += logits * weight.to(logits.dtype)
            weights[inside] += weight
    assert total is not None
    return total.div_(weights)


def _starts(size: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along an axis: evenly, the first at its start and the last at its end."""
    step = max(1, math.floor(tile * (1 - overlap)))
    intervals = -(-(size - tile) // step)
    return [round(i * (size - tile) / intervals) for i in range(intervals)] + [size - tile]


def _hat(tile: int, overlap: float, like: Tensor) -> Tensor:
    ramp = max(1.0, tile * overlap)
    inwards = torch.arange(1, tile + 1, dtype=torch.float32, device=like.device)
    return torch.minimum(inwards, inwards.flip(0)).clamp(max=ramp) / ramp
