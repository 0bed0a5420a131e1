"""Layers: parameters and options plus one operator call."""

from segops.nn.losses import DeepSupervisionLoss, DiceBCELoss, DiceCELoss
from segops.nn.pooling import MaxPool2d, MaxUnpool2d
from segops.nn.upsampling import BedOfNails2d, Upsample, UpsampleCat, UpsamplingBilinear2d, UpsamplingNearest2d

__all__ = [
    "BedOfNails2d",
    "DeepSupervisionLoss",
    "DiceBCELoss",
    "DiceCELoss",
    "MaxPool2d",
    "MaxUnpool2d",
    "Upsample",
    "UpsampleCat",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]
