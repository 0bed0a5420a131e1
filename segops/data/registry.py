"""Datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from segops.data.digit_scenes import DigitScenes
from segops.data.files import DataError, read_list
from segops.data.folder import IGNORE, ImageMaskFolder, MaskFiles, camvid, sod
from segops.data.palettes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_IDS,
    VOC_CLASSES,
    voc_palette,
)
from segops.data.transforms import Transform, as_pair

_SCENES = {"train": 1200, "val": 200}


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """:class:`segops.data.DigitScenes` with the attributes and the transform of the other datasets."""

    classes, palette = DigitScenes.classes, DigitScenes.palette
    num_classes, ignore_index = len(DigitScenes.classes), IGNORE

    def __init__(self, split: str, transform: Transform | None) -> None:
        self.scenes = DigitScenes(split, _SCENES.get(split, 0))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.transform is None:
            return self.scenes[index]
        image, mask = self.transform(*as_pair(*self.scenes[index]))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def _folder(root: Path, split: str, transform: Transform | None) -> MaskFiles:
    path = root / "classes.txt"
    if not path.is_file():
        names = ("background", "object")
        return ImageMaskFolder(root, split, names, masks="binary", transform=transform)
    classes: list[str] = []
    for number, name in read_list(path):
        if name in classes:
            raise DataError(f"{path}:{number}: a second class {name!r}")
        classes.append(name)
    return ImageMaskFolder(root, split, classes, transform=transform)


def _cityscapes(root: Path, split: str, transform: Transform | None) -> MaskFiles:
    from torchvision.datasets import Cityscapes

    found = Cityscapes(str(root), split, mode="fine", target_type="semantic")
    return MaskFiles(
        [(Path(image), Path(targets[0])) for image, targets in zip(found.images, found.targets, strict=True)],
        CITYSCAPES_CLASSES,
        palette=CITYSCAPES_PALETTE,
        label_map=CITYSCAPES_TRAIN_IDS,
        transform=transform,
    )


def _voc(root: Path, split: str, transform: Transform | None) -> MaskFiles:
    from torchvision.datasets import VOCSegmentation

    found = VOCSegmentation(str(root), year="2012", image_set=split)
    return MaskFiles(
        [(Path(image), Path(mask)) for image, mask in zip(found.images, found.masks, strict=True)],
        VOC_CLASSES,
        palette=voc_palette(len(VOC_CLASSES)),
        transform=transform,
    )


_ON_DISK: dict[str, Callable[[Path, str, Transform | None], MaskFiles]] = {
    "camvid": camvid,
    "cityscapes": _cityscapes,
    "folder": _folder,
    "sod": sod,
    "voc": _voc,
}

#: The names that :func:`open_dataset` takes.
DATASETS = (*_ON_DISK, "digits")


def open_dataset(name: str, root: str | Path | None, split: str, transform: Transform | None = None) -> Any:
    """A dataset by its name.

    ======== ==========================================================================================================
    name     root
    ======== ==========================================================================================================
    camvid   of :func:`segops.data.camvid`
    sod      of :func:`segops.data.sod`
    folder   images/, masks/ and SPLIT.txt: :class:`segops.data.ImageMaskFolder`. With a file classes.txt, one name a
             line, masks hold class numbers, and 255 for what is ignored; without, they are binary.
    digits   None: :class:`segops.data.DigitScenes`, 1200 scenes of "train" and 200 of "val"
    ======== ==========================================================================================================

    and "cityscapes" and "voc", the roots of torchvision.datasets.Cityscapes (19 train ids of the fine masks) and
    torchvision.datasets.VOCSegmentation (2012).

    Args:
        name, root, split: see above.
        transform: makes (image, mask) of :func:`segops.data.as_pair`.

    Returns:
        a dataset of (image float [3, H, W], mask [H, W]) with `classes` (names), `num_classes`, `ignore_index` and
        `palette`, uint8 [len(classes), 3]. Masks are int64; for binary ones `num_classes` is 1, and they are uint8.

    Raises:
        ValueError: an unknown name or split, or a root too much or too few.
        FileNotFoundError, DataError: the data are not there or cannot be used; the path is in the message.
    """
    if name not in DATASETS:
        raise ValueError(f"open_dataset: name must be one of {', '.join(sorted(DATASETS))}, got {name!r}")
    if name == "digits":
        if root is not None:
            raise ValueError(f"open_dataset: root must be None for digits, which are made, not read, got {root}")
        return Digits(split, transform)
    if root is None:
        raise ValueError(f"open_dataset: root must be the folder of {name}, got None")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder, the root of {name}")
    try:
        return _ON_DISK[name](Path(root), split, transform)
    except RuntimeError as error:  # how torchvision says that files are missing
        raise DataError(f"{root}: not the layout of {name}: {error}") from error
