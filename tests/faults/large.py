"""Calls of every operator with kernels, large enough that each shares its work out to several threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import segops
from segops.ops.mask_overlaps import mask_overlaps
from segops.ops.saliency_maps import REACH, saliency_maps


def calls() -> dict[str, Callable[[], Any]]:
    """By what they call; each needs a few MiB for results and scratch."""
    images = torch.rand(2, 8, 96, 160)
    last = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 8, (2, 384, 640))
    pooled, indices = segops.max_pool2d(images, 3, 2, 1)
    flat_indices = segops.local_to_flat_indices(indices, (96, 160), 3, 2, 1)
    weight = torch.rand(32, 32, 3, 3)
    skip = torch.rand(2, 3, 192, 320)
    deep = torch.rand(1, 32, 64, 96)
    maps = images[:, 0].repeat(3, 1, 1)
    map_bytes = (maps * 255).byte()
    masks = (images > 0.7).flatten(2).flatten(0, 1)
    nearness = torch.rand(REACH**2 + 1, dtype=torch.float64)

    def gradient(function: Callable[..., Tensor], x: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            leaf = x.detach().requires_grad_()
            function(leaf).sum().backward()
            assert leaf.grad is not None
            return leaf.grad

        return run

    return {
        "upsample_bilinear2d": lambda: segops.upsample_bilinear2d(images, (384, 640)),
        "upsample_bilinear2d, gradient": gradient(lambda x: segops.upsample_bilinear2d(x, (200, 300)), images),
        "upsample_bilinear2d, channels last": gradient(lambda x: segops.upsample_bilinear2d(x, (200, 300)), last),
        "upsample_cat": lambda: segops.upsample_cat(images, skip),
        "upsample_nearest2d": gradient(lambda x: segops.upsample_nearest2d(x, (200, 300)), images),
        "bed_of_nails2d": lambda: segops.bed_of_nails2d(images, 3),
        "upsample_argmax": lambda: segops.upsample_argmax(images, (384, 640), return_score=True),
        "confusion_matrix": lambda: segops.confusion_matrix(labels, labels, 700),
        "max_pool2d": gradient(lambda x: segops.max_pool2d(x, 3, 1, 1)[0], images),
        "max_unpool2d": lambda: segops.max_unpool2d(pooled, indices, 3, 2, 1, output_size=(96, 160)),
        "max_unpool2d, flat": lambda: segops.max_unpool2d(pooled, flat_indices, 3, 2, 1, output_size=(96, 160)),
        "dilated_conv2d": lambda: segops.dilated_conv2d(deep, weight, padding=2, dilation=2),
        "dilated_conv2d, gradient": gradient(lambda x: segops.dilated_conv2d(x, weight, padding=1), deep),
        "dice_ce_loss, coarse": gradient(lambda x: segops.dice_ce_loss(x, labels), images),
        "dice_ce_loss": gradient(lambda x: segops.dice_ce_loss(x, labels[:, :96, :160], reduction="mean"), last),
        "dice_bce_loss": gradient(lambda x: segops.dice_bce_loss(x, (images > 0.5).float()), images),
        "saliency_maps": lambda: tuple(saliency_maps(maps, maps > 0.7, nearness, True).values()),
        "saliency_maps of bytes": lambda: tuple(saliency_maps(map_bytes, maps > 0.7, nearness, True).values()),
        "mask_overlaps": lambda: mask_overlaps(masks.repeat(4, 1), masks),
    }
