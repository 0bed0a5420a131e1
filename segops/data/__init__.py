"""Datasets of images and masks, their palettes and statistics.

What torchvision has is taken from there: ``torchvision.datasets`` and, to augment images and masks together,
``torchvision.transforms.v2``. A torchvision release belongs to one torch release. Neither it nor pillow is imported
before it is needed.
"""

from segops.data.digit_scenes import DigitScenes
from segops.data.files import DataError, MaskKind, read_image, read_mask
from segops.data.folder import ImageMaskFolder, MaskFiles, camvid, sod
from segops.data.palettes import (
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_IDS,
    VOC_CLASSES,
    cityscapes_train_ids,
    colorize,
    save_label_png,
    voc_palette,
)
from segops.data.registry import DATASETS, open_dataset
from segops.data.statistics import ClassStatistics, class_statistics
from segops.data.targets import border_weights, gaussian_heatmaps
from segops.data.transforms import as_pair, eval_transform, train_transform

__all__ = [
    "CAMVID_CLASSES",
    "CAMVID_PALETTE",
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_PALETTE",
    "CITYSCAPES_TRAIN_IDS",
    "DATASETS",
    "VOC_CLASSES",
    "ClassStatistics",
    "DataError",
    "DigitScenes",
    "ImageMaskFolder",
    "MaskFiles",
    "MaskKind",
    "as_pair",
    "border_weights",
    "camvid",
    "cityscapes_train_ids",
    "class_statistics",
    "colorize",
    "eval_transform",
    "gaussian_heatmaps",
    "open_dataset",
    "read_image",
    "read_mask",
    "save_label_png",
    "sod",
    "train_transform",
    "voc_palette",
]
