"""Encoders whose poolings tell the decoder where each maximum was: what SegNet and DeconvNet share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from segops.models.model import SegmentationModel
from segops.nn import MaxPool2d, MaxUnpool2d

EPS = 1e-5
"""Of the batch norms."""


class UnpoolingModel(SegmentationModel):
    """Stages that end with 2x2 pooling, and as many that begin with its inverse.

    Of each pooling one byte a window is kept, and the size before it, so that any size is restored.

    Args:
        encoder, decoder: the stages, in the order of their use; modules that take and return one map.
        classifier: what makes logits of the decoder's result.
        ceil_mode: of the pooling, which then keeps an odd last row and column.
    """

    def __init__(
        self,
        encoder: Iterable[nn.Module],
        decoder: Iterable[nn.Module],
        classifier: nn.Module,
        ceil_mode: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(encoder)
        self.pool = MaxPool2d(2, ceil_mode=ceil_mode, return_indices=True)
        self.bottleneck: nn.Module = nn.Identity()
        self.unpool = MaxUnpool2d(2)
        self.decoder = nn.ModuleList(decoder)
        self.classifier = classifier

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        self.check_size(*input.shape[-2:])
        x = input
        poolings = []
        for stage in self.encoder:
            x = stage(x)
            size = x.shape[-2:]
            x, indices = self.pool(x)
            poolings.append((indices, size))
        x = self.bottleneck(x)
        for stage in self.decoder:
            x = stage(self.unpool(x, *poolings.pop()))
        return [self.classifier(x)]

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError where an image of this size does not survive the poolings."""
        least = 1 if self.pool.ceil_mode else 2 ** len(self.encoder)
        if height < least or width < least:
            raise ValueError(
                f"segops.models.{type(self).__name__}: the image must have at least {least} x {least} pixels with "
                f"ceil_mode={self.pool.ceil_mode}, got {height} x {width}"
            )


def with_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of batch norms from Caffe's, which hold a scale and a shift alone, all statistics absorbed.

    A mean of 0 and a variance of 1 - eps normalise nothing. A state with statistics is left as it is.

    Args:
        state: our keys, which end with ".norm.weight" and ".norm.bias" for scale and shift, [C] or [1, C, 1, 1].
    """
    result = dict(state)
    if any(".norm.running_" in key for key in state):
        return result
    for key, value in state.items():
        name, _, last = key.rpartition(".")
        if not name.endswith(".norm"):
            continue
        result[key] = value.flatten()
        if last == "weight":
            result[f"{name}.running_mean"] = torch.zeros_like(result[key])
            result[f"{name}.running_var"] = torch.full_like(result[key], 1 - EPS)
    return result


def norm_rules(official: str, ours: str) -> list[tuple[str, str]]:
    """Rules of :func:`segops.models.official.renamed` for a batch norm, of either kind.

    Args:
        official: regular expression of the layer's name.
        ours: name of the module.
    """
    return [
        (rf"{official}\.(weight|bias|running_mean|running_var)", rf"{ours}.\1"),
        (rf"{official}\.scale", f"{ours}.weight"),
        (rf"{official}\.shift", f"{ours}.bias"),
    ]


def as_convolution(weight: Tensor) -> Tensor:
    """The kernel [C_out, C_in, k, k] of the convolution that a transposed one of stride 1 is.

    It has padding k - 1 - p where that has p, which for 3x3 with p = 1 is the same.

    Args:
        weight: [C_in, C_out, k, k] of the transposed convolution.
    """
    return weight.transpose(0, 1).flip(2, 3).contiguous()
