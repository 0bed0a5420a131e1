"""Augmentation of images together with their masks: torchvision.transforms.v2, with what segmentation needs set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: What makes (image, mask) of (image, mask), such as a torchvision.transforms.v2.Compose.
Transform = Callable[..., tuple[Tensor, Tensor]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _torchvision() -> tuple[Any, Any]:
    try:
        from torchvision import tv_tensors
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError(
            f"segops.data transforms with torchvision ({error}); a torchvision release belongs to one torch release: "
            "pip install 'segops[train]'"
        ) from error
    return tv_tensors, v2


def as_pair(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """An image and its mask as torchvision.tv_tensors, which the transforms of v2 augment together.

    One random draw serves both: a crop, flip or rotation cuts the same pixels out of both, colours change in the
    image alone, and masks are resampled by nearest neighbour, so that no label is made up.

    Args:
        image: [3, H, W], uint8, or floating point in 0 .. 1.
        mask: [H, W], labels.
    """
    if image.ndim != 3 or mask.ndim != 2 or image.shape[1:] != mask.shape:
        raise ValueError(
            f"as_pair: image and mask must be [C, H, W] and [H, W], got {list(image.shape)} and {list(mask.shape)}"
        )
    tv_tensors, _ = _torchvision()
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


def _floating(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Integers as float32 in 0 .. 1; floating-point images as they are."""
    _, v2 = _torchvision()
    return (image if image.is_floating_point() else v2.functional.to_dtype(image, torch.float32, scale=True)), mask


def train_transform(
    size: tuple[int, int] | None,
    ignore_index: int,
    *,
    scale: tuple[float, float] | None = (0.5, 2.0),
    flip: float = 0.5,
    jitter: float = 0.3,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
) -> Transform:
    """Random scale, crop, mirror and colours, then normalisation: the augmentation of most published training recipes.

    Its draws come from torch's global generator: after ``torch.manual_seed(s)`` the same ones. DataLoader seeds that of
    each worker from its own ``generator``.

    Args:
        size: (height, width) of the crops; None leaves images whole, and their scale.
        ignore_index: label of the pixels that are padded where the scaled image is smaller than the crop.
        scale: range of the factor between the scaled image and the one that just fits into the crop; None for none.
        flip: probability of a mirrored image.
        jitter: change of brightness, contrast and saturation at most, as a share; of the hue a sixth of that.
        mean, std: of the channels, of values in 0 .. 1; what is padded has the mean. With std None nothing is
            normalised.

    Returns:
        a function of (image, mask) as :func:`as_pair` makes them.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"train_transform: size must be (height, width) of at least 1 each, got {size}")
    if scale is not None and not 0 < scale[0] <= scale[1]:
        raise ValueError(f"train_transform: scale must be an increasing range above 0, got {scale}")
    tv_tensors, v2 = _torchvision()
    fill = {tv_tensors.Image: list(mean), tv_tensors.Mask: ignore_index}
    steps: list[Any] = [_floating]
    if size is not None:
        if scale is not None:
            steps.append(v2.ScaleJitter(size, scale))
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(jitter, jitter, jitter, jitter / 6))
    if std is not None:
        steps.append(v2.Normalize(mean, std))
    return v2.Compose(steps)


def eval_transform(
    size: tuple[int, int] | None = None,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Transform:
    """Normalisation, of images resized before if a `size` (height, width) is given."""
    _, v2 = _torchvision()
    return v2.Compose([_floating, *([] if size is None else [v2.Resize(size)]), v2.Normalize(mean, std)])
