"""Layers: parameters and options plus one operator call."""

from segops.nn.convolution import ConvNormAct, DilatedConv2d
from segops.nn.losses import DeepSupervisionLoss, DiceBCELoss, DiceCELoss
from segops.nn.pooling import MaxPool2d, MaxUnpool2d
from segops.nn.upsampling import BedOfNails2d, Upsample, UpsampleCat, UpsamplingBilinear2d, UpsamplingNearest2d

__all__ = [
    "BedOfNails2d",
    "ConvNormAct",
    "DeepSupervisionLoss",
    "DiceBCELoss",
    "DiceCELoss",
    "DilatedConv2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "Upsample",
    "UpsampleCat",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]
