"""Layers: parameters and options plus one operator call."""

from segops.nn.losses import DeepSupervisionLoss, DiceCELoss

__all__ = [
    "DeepSupervisionLoss",
    "DiceCELoss",
]
