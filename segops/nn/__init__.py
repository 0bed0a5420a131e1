"""Layers: parameters and options plus one operator call."""

from segops.nn.losses import DiceCELoss
from segops.nn.upsampling import BedOfNails2d, Upsample, UpsampleCat, UpsamplingBilinear2d, UpsamplingNearest2d

__all__ = [
    "BedOfNails2d",
    "DiceCELoss",
    "Upsample",
    "UpsampleCat",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]
