"""Layers: parameters and options plus one operator call."""

from segops.nn.losses import DiceCELoss

__all__ = ["DiceCELoss"]
