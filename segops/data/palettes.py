"""Names, colours and label numbers of well-known datasets, and label maps as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segops._dtypes import dtype_name
from segops.data.files import pillow


def _table(entries: dict[str, tuple[int, int, int]]) -> tuple[tuple[str, ...], Tensor]:
    return tuple(entries), torch.tensor(list(entries.values()), dtype=torch.uint8)


_CAMVID = _table(
    {
        "sky": (128, 128, 128),
        "building": (128, 0, 0),
        "pole": (192, 192, 128),
        "road": (128, 64, 128),
        "pavement": (60, 40, 222),
        "tree": (128, 128, 0),
        "sign": (192, 128, 128),
        "fence": (64, 64, 128),
        "car": (64, 0, 128),
        "pedestrian": (64, 64, 0),
        "bicyclist": (0, 128, 192),
    }
)
#: The 11 classes of CamVid that SegNet trains on; label 11 is void.
CAMVID_CLASSES = _CAMVID[0]
#: Their colours, uint8 [11, 3].
CAMVID_PALETTE = _CAMVID[1]

_CITYSCAPES = _table(
    {
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "train": (0, 80, 100),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    }
)
#: The 19 classes of Cityscapes that are trained and evaluated, in the order of their train ids.
CITYSCAPES_CLASSES = _CITYSCAPES[0]
#: Their colours, uint8 [19, 3].
CITYSCAPES_PALETTE = _CITYSCAPES[1]
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

#: Train id of each of the 256 values that a *_labelIds.png may hold: int64 [256], 255 for what is ignored.
CITYSCAPES_TRAIN_IDS = torch.full((256,), 255)
CITYSCAPES_TRAIN_IDS[list(_CITYSCAPES_IDS)] = torch.arange(len(_CITYSCAPES_IDS))

#: The 21 classes of PASCAL VOC, background first.
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip


def voc_palette(length: int = 256) -> Tensor:
    """The colours of PASCAL VOC, uint8 [length, 3], for up to 256 labels of any dataset.

    The bits of a label go in turn to red, green and blue, the low ones to the high bits of a colour.
    """
    if not 1 <= length <= 256:
        raise ValueError(f"voc_palette: length must be in 1 .. 256, got {length}")
    bits = torch.arange(length)[:, None] >> torch.arange(24) & 1  # bit 3 k + c of a label is bit 7 - k of channel c
    weights = 1 << 7 - torch.arange(8)
    return (bits.view(length, 8, 3) * weights[:, None]).sum(1).to(torch.uint8)


def cityscapes_train_ids(mask: Any) -> Tensor:
    """Labels of Cityscapes as train ids; the ``target_transform`` of ``torchvision.datasets.Cityscapes``.

    Args:
        mask: what a *_labelIds.png holds: a PIL image, a NumPy array, or a tensor [..., H, W] of integers; -1 and 255
            are the licence plate.

    Returns:
        int64 of the same shape, 0 .. 18, and 255 for what is ignored.
    """
    ids = mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    ids = ids.long()
    if ids.numel() and not (int(ids.min()) >= -1 and int(ids.max()) <= 255):
        raise ValueError(f"cityscapes_train_ids: ids must be in -1 .. 255, got {int(ids.min())} .. {int(ids.max())}")
    return CITYSCAPES_TRAIN_IDS.to(ids.device)[ids % 256]


def colorize(labels: Tensor, palette: Tensor, ignore_index: int | None = None) -> Tensor:
    """Label maps as RGB pictures.

    Args:
        labels: integers [..., H, W].
        palette: uint8 [K, 3].
        ignore_index: a label that is painted black where the palette has no colour for it.

    Returns:
        uint8 [..., 3, H, W], on the device of the labels.

    Raises:
        TypeError, ValueError: labels or a palette of another type or shape, or a label without a colour.
    """
    labels, palette = _checked("colorize", labels, palette, ignore_index)
    black = palette.new_zeros(1, 3)
    index = torch.where(labels < len(palette), labels, len(palette))  # what is beyond, is ignored
    return torch.cat([palette, black]).to(labels.device)[index].movedim(-1, -3).contiguous()


def save_label_png(path: str | Path, labels: Tensor, palette: Tensor, ignore_index: int | None = None) -> None:
    """Write a label map as a PNG of label numbers that viewers show in the palette's colours.

    Args:
        path: of the file.
        labels: integers [H, W] in 0 .. 255.
        palette: uint8 [K, 3].
        ignore_index: a label that may have no colour of its own; it is shown in black.

    Raises:
        TypeError, ValueError: as :func:`colorize`.
    """
    labels, palette = _checked("save_label_png", labels, palette, ignore_index)
    if labels.ndim != 2 or (ignore_index is not None and ignore_index > 255 and bool((labels == ignore_index).any())):
        raise ValueError(f"save_label_png: labels must be [H, W] in 0 .. 255, got {list(labels.shape)}")
    image = pillow().fromarray(labels.to("cpu", torch.uint8).numpy())
    # All 256 colors: pillow writes as few bits a label as the palette needs, and would cut the ignored one off.
    colors = torch.cat([palette.cpu(), palette.new_zeros(256 - len(palette), 3, device="cpu")])
    image.putpalette(colors.numpy().tobytes())
    image.save(path, format="PNG")


def _checked(name: str, labels: Tensor, palette: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    if labels.is_floating_point() or labels.is_complex() or labels.ndim < 2:
        kind = dtype_name(labels.dtype)
        raise TypeError(f"{name}: labels must be integers [..., H, W], got {kind} {list(labels.shape)}")
    if palette.dtype != torch.uint8 or palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 256:
        kind = dtype_name(palette.dtype)
        raise TypeError(f"{name}: palette must be uint8 [K, 3] of 1 .. 256 colors, got {kind} {list(palette.shape)}")
    labels = labels.long()
    bad = (labels < 0) | (labels >= len(palette))
    if ignore_index is not None and ignore_index >= 0:
        bad &= labels != ignore_index
    if bool(bad.any()):
        raise ValueError(f"{name}: labels must be in 0 .. {len(palette) - 1}, got {int(labels[bad][0])}")
    return labels, palette
