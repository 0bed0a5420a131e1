"""Datasets of their own: what torchvision.datasets does not have."""

from segops.data.digit_scenes import DigitScenes

__all__ = ["DigitScenes"]
