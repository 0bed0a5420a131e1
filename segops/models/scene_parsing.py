"""Scene parsing by a convolutional network that labels the centre of a patch.

A generic reconstruction of Grangier, Bottou and Collobert, "Deep Convolutional Networks for Scene Parsing" (ICML
workshop on Learning Feature Hierarchies, 2009): neither code nor a table of layers was published. What is known is
kept: convolutions, tanh and pooling in blocks label every pixel from the patch around it, without hand-made features or
a random field, and training is "supervised greedy": a shallow network is trained, then a layer is added and the deeper
one is trained. Widths and sizes are this module's own.

There is no published checkpoint; keys are those of the state_dict of :class:`SceneParsing`.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segops.models import official
from segops.models.model import SegmentationModel
from segops.models.registry import Entry
from segops.nn import DilatedConv2d
from segops.ops.dilated_conv import dilated_conv2d
from segops.ops.max_unpool import max_pool2d


class Block(nn.Module):
    """A convolution without padding, tanh, and 2x2 max-pooling."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = DilatedConv2d(in_channels, out_channels, kernel_size)

    def forward(self, input: Tensor, spacing: int, stride: int) -> Tensor:
        """
        Args:
            input: [N, C, H, W].
            spacing: of the elements that convolution and pooling take, one for consecutive ones.
            stride: of the pooling.
        """
        x = dilated_conv2d(input, self.conv.weight, self.conv.bias, dilation=spacing)
        return max_pool2d(torch.tanh(x), 2, stride, dilation=spacing)[0]


class SceneParsing(SegmentationModel):
    """Blocks of convolution, tanh and pooling, and a classifier of what they make of a patch.

    :meth:`patch_logits` labels the centres of patches. In an image every pixel is the centre of its patch, with zeros
    beyond the border; the logits are the same, but what patches share is computed once: pooling keeps every position,
    and what follows takes elements twice as far apart.

    Args:
        num_classes: channels K of the logits.
        in_channels: of the images.
        widths: channels of each block; training may begin with one and add others with :meth:`grow`.
        kernel_size: of the convolutions. Patches have an odd size, and with it a pixel in their middle, where this is
            even; otherwise the pixel after the middle is labelled.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, widths: tuple[int, ...] = (32, 64, 128), kernel_size: int = 6
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("segops.models.SceneParsing: widths must name at least one block, got none")
        self.kernel_size = kernel_size
        self.blocks = nn.ModuleList(Block(i, o, kernel_size) for i, o in pairwise((in_channels, *widths)))
        self.classifier = DilatedConv2d(widths[-1], num_classes, 1)

    @property
    def patch_size(self) -> int:
        """Pixels P a side of what a label is made from."""
        size = 1
        for _ in self.blocks:
            size = 2 * size + self.kernel_size - 1
        return size

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        before = self.patch_size // 2
        after = self.patch_size - 1 - before
        x = F.pad(input, [before, after, before, after])
        for place, block in enumerate(self.blocks):
            x = block(x, spacing=2**place, stride=1)
        return [self.classifier(x)]

    def patch_logits(self, patches: Tensor) -> Tensor:
        """The logits of the centre of each patch, pixel (P // 2, P // 2): what training on patches needs.

        Args:
            patches: [N, in_channels, P, P].

        Returns:
            [N, K].

        Raises:
            ValueError: the patches have another size.
        """
        size = self.patch_size
        if patches.shape[-2] != size or patches.shape[-1] != size:
            raise ValueError(
                f"segops.models.SceneParsing.patch_logits: patches must be {size} x {size}, "
                f"got {patches.shape[-2]} x {patches.shape[-1]}"
            )
        x = patches
        for block in self.blocks:
            x = block(x, spacing=1, stride=2)
        logits: Tensor = self.classifier(x)
        return logits.flatten(1)

    def grow(self, channels: int, *, freeze: bool = False) -> None:
        """The next stage of supervised greedy training: one more block and a fresh classifier on it.

        The blocks so far keep what they have learned. New parameters are not in an optimiser made before.

        Args:
            channels: of the new block.
            freeze: exclude the blocks so far from further training.
        """
        old = self.classifier
        if freeze:
            self.blocks.requires_grad_(False)
        block = Block(old.in_channels, channels, self.kernel_size)
        classifier = DilatedConv2d(channels, old.out_channels, 1)
        self.blocks.append(block.to(old.weight).train(self.training))
        self.classifier = classifier.to(old.weight).train(self.training)


_KEYS = [(r"(blocks\.\d+\.conv|classifier)\.(weight|bias)", r"\1.\2")]


def _options_of(state: dict[str, Tensor]) -> dict[str, Any]:
    depth = sum(key.endswith(".conv.weight") for key in state)
    weights = [state[f"blocks.{place}.conv.weight"] for place in range(depth)]
    first = state["blocks.0.conv.weight"]
    return {
        "num_classes": state["classifier.weight"].shape[0],
        "in_channels": first.shape[1],
        "widths": tuple(weight.shape[0] for weight in weights),
        "kernel_size": first.shape[-1],
    }


MODELS = {
    "scene_parsing_2009": Entry(SceneParsing, partial(official.renamed, "scene_parsing_2009", rules=_KEYS), _options_of)
}
