"""Layers: parameters and options plus one operator call."""

from segops.nn.convolution import ConvNormAct, ConvTranspose2d, DilatedConv2d
from segops.nn.losses import DeepSupervisionLoss, DiceBCELoss, DiceCELoss
from segops.nn.network_losses import DynamicWeightDecay, HeatmapLoss, OhemCrossEntropy
from segops.nn.octave import GOctConv2d, OctConv2d
from segops.nn.pooling import MaxPool2d, MaxUnpool2d
from segops.nn.precision import prepack, set_precision
from segops.nn.saliency_losses import BASNetLoss, SSIMLoss, U2NetLoss
from segops.nn.upsampling import BedOfNails2d, Cat, Upsample, UpsampleCat, UpsamplingBilinear2d, UpsamplingNearest2d

__all__ = [
    "BASNetLoss",
    "BedOfNails2d",
    "Cat",
    "ConvNormAct",
    "ConvTranspose2d",
    "DeepSupervisionLoss",
    "DiceBCELoss",
    "DiceCELoss",
    "DilatedConv2d",
    "DynamicWeightDecay",
    "GOctConv2d",
    "HeatmapLoss",
    "MaxPool2d",
    "MaxUnpool2d",
    "OctConv2d",
    "OhemCrossEntropy",
    "SSIMLoss",
    "U2NetLoss",
    "Upsample",
    "UpsampleCat",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
    "prepack",
    "set_precision",
]
