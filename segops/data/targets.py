"""What some networks are trained by, made from annotations: heat maps of points, weights around borders of objects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segops.metrics.distance import REACH, nearest_foreground

#: Cells farther than this many sigma are not looked for: there the term is below 3e-11 of its largest value.
_SIGMAS = 7


def gaussian_heatmaps(
    points: Tensor, size: tuple[int, int], sigma: float = 1.0, visible: Tensor | None = None
) -> Tensor:
    """For each point a map of exp(-d^2 / (2 sigma^2)), d the distance of a pixel's centre to it.

    The stacked hourglass is trained by those with a sigma of one pixel at 64 x 64 (Newell et al. 2016).

    Args:
        points: [..., 2], x and y in pixels of the heat map, (0, 0) the centre of the first one; they may lie outside.
        size: (h, w).
        sigma: in pixels.
        visible: bool of the shape of points without its last dimension; the maps of others are zero.

    Returns:
        [..., h, w], in the dtype of points if that is floating point, else float32.

    Raises:
        ValueError: shapes that do not fit, or a sigma that is not positive.
    """
    if points.ndim < 1 or points.shape[-1] != 2:
        raise ValueError(f"segops.data.gaussian_heatmaps: points must be [..., 2], got {list(points.shape)}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"segops.data.gaussian_heatmaps: sigma must be positive and finite, got {sigma!r}")
    if visible is not None and visible.shape != points.shape[:-1]:
        shapes = f"{list(points.shape[:-1])} like points, got {list(visible.shape)}"
        raise ValueError(f"segops.data.gaussian_heatmaps: visible must be {shapes}")
    points = points if points.is_floating_point() else points.float()
    rows, columns = (torch.arange(n, dtype=points.dtype, device=points.device) for n in size)
    across = torch.exp(-0.5 * ((columns - points[..., :1]) / sigma) ** 2)
    down = torch.exp(-0.5 * ((rows - points[..., 1:]) / sigma) ** 2)
    maps = down[..., :, None] * across[..., None, :]
    return maps if visible is None else torch.where(visible[..., None, None], maps, 0.0)


def border_weights(
    instances: Tensor, w0: float = 10.0, sigma: float = 5.0, class_weights: Sequence[float] = (1.0, 1.0)
) -> Tensor:
    """Weights of pixels that grow where two cells come close: w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) between cells.

    d1 and d2 are the exact Euclidean distances to the nearest pixel of the nearest and of the second nearest cell;
    w_c is the weight of the pixel's class. Pixels of cells have w_c alone: the term is there to keep the borders
    between cells (Ronneberger et al., "U-Net", 2015, eq. 2). It is zero with a single cell, and where d2 exceeds
    7 sigma. For ``pixel_weight`` of :func:`segops.dice_ce_loss`.

    Args:
        instances: [H, W] or [N, H, W] of an integer type: 0 for background, and for each cell a number of its own.
        w0: height of the term.
        sigma: its width in pixels, at most 36.
        class_weights: of background and of cells.

    Returns:
        float32 of the shape of instances, on its device (computed image by image, cell by cell).

    Raises:
        TypeError, ValueError: instances of another type or shape, or a sigma out of range.
    """
    if instances.is_floating_point() or instances.is_complex() or instances.dtype == torch.bool:
        raise TypeError(f"segops.data.border_weights: instances must be of an integer type, got {instances.dtype}")
    if instances.ndim not in (2, 3):
        shape = list(instances.shape)
        raise ValueError(f"segops.data.border_weights: instances must be [H, W] or [N, H, W], got {shape}")
    if not 0 < sigma <= REACH // _SIGMAS:
        raise ValueError(f"segops.data.border_weights: sigma must be in (0, {REACH // _SIGMAS}], got {sigma!r}")
    if len(class_weights) != 2:
        raise ValueError(f"segops.data.border_weights: class_weights must be two numbers, got {list(class_weights)}")
    if instances.ndim == 3:
        maps = [border_weights(image, w0, sigma, class_weights) for image in instances]
        return torch.stack(maps) if maps else instances.float()
    background, cells = class_weights
    between = w0 * torch.exp(-0.5 * (_two_nearest(instances, math.ceil(_SIGMAS * sigma)) / sigma) ** 2)
    return torch.where(instances == 0, background + between, cells)


def _two_nearest(instances: Tensor, reach: int) -> Tensor:
    """d1 + d2, infinite where one of them is beyond `reach` in a row or column."""
    nearest = torch.full(instances.shape, math.inf, device=instances.device)
    second = nearest.clone()
    for cell in instances.unique().tolist():
        if cell == 0:
            continue
        mask = instances == cell
        box = tuple(
            slice(max(0, int(where.min()) - reach), int(where.max()) + reach + 1) for where in mask.nonzero().unbind(1)
        )
        distance = nearest_foreground(mask[box][None]).square[0].sqrt()
        distance[distance > reach] = math.inf
        near = nearest[box]
        second[box] = torch.minimum(second[box], torch.maximum(near, distance))
        nearest[box] = torch.minimum(near, distance)
    return nearest + second
