"""Datasets of their own: what torchvision.datasets does not have."""

from segops.data.digit_scenes import DigitScenes
from segops.data.targets import border_weights, gaussian_heatmaps

__all__ = ["DigitScenes", "border_weights", "gaussian_heatmaps"]
