"""Measuring a network on a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segops.engine.ranks import Ranks
from segops.metrics import SaliencyMetrics, SegmentationMetrics
from segops.ops.upsample_bilinear import upsample_bilinear2d
from segops.prediction import final_logits, labels_of


@dataclass(frozen=True)
class Preparation:
    """What is done to a batch of images before they come to a network.

    Attributes:
        mean, std: of the channels, subtracted and divided by.
        resize: height and width that images are brought to; None leaves theirs.
        channels_last: the layout.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, int] | None = None
    channels_last: bool = False

    def __call__(self, images: Tensor, device: torch.device) -> Tensor:
        """Float [N, 3, H, W] in 0 .. 1 as the network takes them, on its device."""
        images = images.to(device, non_blocking=True)
        if self.resize is not None and tuple(images.shape[-2:]) != self.resize:
            images = torch.nn.functional.interpolate(images, self.resize, mode="bilinear", antialias=True)
        shape = (-1, 1, 1)
        images = (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(self.std).view(shape)
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def probability(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Of one class: float [N, H, W] at `size` from logits [N, 1, h, w]."""
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = upsample_bilinear2d(logits, size, align_corners=align_corners)
    return logits[:, 0].float().sigmoid()


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    prepare: Preparation,
    ranks: Ranks,
    num_classes: int,
    ignore_index: int | None,
    shown: int = 0,
) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor, Tensor]]]:
    """Scores over this and all other ranks' batches; images, masks and predictions of the first few on this rank.

    Args:
        model: in whatever mode; it is measured in eval mode and left as it was.
        batches: images [N, 3, H, W] and masks [N, H, W] of this rank.
        prepare: of the images.
        ranks: that share the split, each of which must call this.
        num_classes: K of the logits. One means two classes to be told apart, and measures of saliency besides.
        ignore_index: label of pixels that count nowhere, or None.
        shown: how many triples to return, of the first batch at most.

    Returns:
        What :class:`segops.metrics.SegmentationMetrics` computes, with the scalars of
        :class:`segops.metrics.SaliencyMetrics` for one class.
    """
    segmentation = SegmentationMetrics(max(num_classes, 2), ignore_index)
    saliency = SaliencyMetrics(normalize=False) if num_classes == 1 else None
    pictures: list[tuple[Tensor, Tensor, Tensor]] = []
    training = model.training
    model.eval()
    for images, masks in batches:
        logits, align_corners = final_logits(model, prepare(images, ranks.device))
        size = (masks.shape[1], masks.shape[2])
        labels, target = labels_of(logits, size, align_corners), masks.to(ranks.device)
        labels = labels.to(torch.uint8) if num_classes == 1 else labels
        segmentation.update(labels, target)
        if saliency is not None:
            saliency.update(probability(logits, size, align_corners), target == 1)
        if not pictures:
            pictures = list(zip(images[:shown], masks[:shown].long(), labels[:shown].long().cpu(), strict=True))
    model.train(training)
    if ranks.count > 1:
        segmentation.sync(ranks.group)
        if saliency is not None:
            saliency.sync(ranks.group)
    scores: dict[str, Any] = dict(segmentation.compute())
    if saliency is not None:
        scores |= {name: value for name, value in saliency.compute().items() if value.ndim == 0}
    return {name: value.tolist() for name, value in scores.items()}, pictures
