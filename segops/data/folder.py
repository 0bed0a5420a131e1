"""Datasets of image and mask files: a folder of one's own, CamVid, SOD, and what torchvision knows the layout of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from segops.data.files import (
    IMAGE_SUFFIXES,
    DataError,
    MaskKind,
    check_kind,
    check_labels,
    existing,
    found,
    read_image,
    read_list,
    read_mask,
)
from segops.data.palettes import CAMVID_CLASSES, CAMVID_PALETTE, voc_palette
from segops.data.transforms import Transform, as_pair

_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
#: Label of what counts nowhere, where a dataset has none of its own: of padding.
IGNORE = 255


class MaskFiles(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image file and a mask file.

    Each item is ``(image, mask)``: without a transform, image float32 [3, H, W] in 0 .. 1, and mask int64 [H, W] of
    class numbers, or for one class uint8 [H, W] of 0, 1 and `ignore_index`. A file that cannot be used raises
    FileNotFoundError or :class:`segops.data.DataError` with its path.

    Args:
        pairs: paths of image and mask.
        classes: names of the classes. With ``masks="binary"`` two, background and object.
        masks: "index", "binary" or "color"; see :data:`segops.data.MaskKind`.
        palette: uint8 [K, 3], the color of each class; VOC's if None.
        ignore_index: label of pixels that count nowhere.
        ignore_color: of masks by color, the color of these pixels, unless a class has it.
        label_map: int64 [256], the label for each number of an index mask.
        transform: makes (image, mask) of what :func:`segops.data.as_pair` makes of both: uint8 image and labels.

    Attributes:
        num_classes: 1 for binary masks: a network for them has one output.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        classes: Sequence[str],
        *,
        masks: MaskKind = "index",
        palette: Tensor | None = None,
        ignore_index: int = IGNORE,
        ignore_color: tuple[int, int, int] | None = None,
        label_map: Tensor | None = None,
        transform: Transform | None = None,
    ) -> None:
        check_kind(masks)
        if masks == "binary" and len(classes) != 2:
            raise ValueError(f"segops.data: binary masks must have the names of two classes, got {list(classes)}")
        if not 1 <= len(classes) <= 256:
            raise ValueError(f"segops.data: classes must be 1 .. 256 names, got {len(classes)}")
        palette = voc_palette(len(classes)) if palette is None else palette
        if palette.dtype != torch.uint8 or palette.shape != (len(classes), 3):
            raise ValueError(
                f"segops.data: palette must be uint8 [{len(classes)}, 3], a color for each class, got "
                f"{str(palette.dtype).removeprefix('torch.')} {list(palette.shape)}"
            )
        self.pairs, self.classes, self.palette = list(pairs), tuple(classes), palette
        self.num_classes = 1 if masks == "binary" else len(classes)
        self.ignore_index, self.masks, self.label_map, self.transform = ignore_index, masks, label_map, transform
        self._colors = {} if ignore_color is None else {_code(ignore_color): ignore_index}
        self._colors |= {_code(color): label for label, color in enumerate(palette.tolist())}
        if masks == "color" and len({_code(color) for color in palette.tolist()}) < len(classes):
            raise ValueError("segops.data: a palette of masks by color must have a color of its own for each class")

    def __len__(self) -> int:
        return len(self.pairs)

    def mask(self, index: int) -> Tensor:
        """The labels of an item as its file has them, without a transform."""
        path = self.pairs[index][1]
        labels = read_mask(path, self.masks, self._colors)
        if self.label_map is not None:
            check_labels(labels, len(self.label_map), None, path)
            labels = self.label_map[labels]
        check_labels(labels, len(self.classes), self.ignore_index, path)
        return labels.to(torch.uint8) if self.num_classes == 1 else labels

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = read_image(self.pairs[index][0]), self.mask(index)
        if image.shape[1:] != mask.shape:
            raise DataError(
                f"{self.pairs[index][1]}: a mask of {mask.shape[0]} x {mask.shape[1]} pixels for an image of "
                f"{image.shape[1]} x {image.shape[2]}, {self.pairs[index][0]}"
            )
        if self.transform is None:
            return image.float() / 255, mask
        image, mask = self.transform(*as_pair(image, mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


class ImageMaskFolder(MaskFiles):
    """A folder with images/ and masks/, and a list file for each split.

    A line of ROOT/SPLIT.txt is a name, of images/NAME and masks/NAME with or without their suffixes (as SOD and DUTS
    have it), or an image and a mask, both from ROOT on (as CamVid has it), with a tab between them where names have
    spaces. No path may lead out of its folder.

    Args:
        root: the folder.
        split: name of the list; with None, all files of images/ with the masks of the same names.
        classes, options: as :class:`MaskFiles` takes them.

    Raises:
        FileNotFoundError: no root, list, image or mask.
        DataError: a list that cannot be used, with its line.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None,
        classes: Sequence[str],
        *,
        masks: MaskKind = "index",
        palette: Tensor | None = None,
        ignore_index: int = IGNORE,
        ignore_color: tuple[int, int, int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.root, self.split = Path(root), split
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        pairs = _all(self.root) if split is None else _listed(self.root, split)
        super().__init__(
            pairs,
            classes,
            masks=masks,
            palette=palette,
            ignore_index=ignore_index,
            ignore_color=ignore_color,
            transform=transform,
        )


def camvid(root: str | Path, split: str | None = "train", transform: Transform | None = None) -> ImageMaskFolder:
    """CamVid as SegNet's tutorial distributes it: lists of "image mask" pairs, 11 classes, 11 for void.

    Brostow, Fauqueur, Cipolla, "Semantic object classes in video" (Pattern Recognition Letters 2009).
    """
    return ImageMaskFolder(
        root, split, CAMVID_CLASSES, palette=CAMVID_PALETTE, ignore_index=len(CAMVID_CLASSES), transform=transform
    )


def sod(root: str | Path, split: str | None = "train", transform: Transform | None = None) -> ImageMaskFolder:
    """SOD, and DUTS, ECSSD and others in the same layout: lists of names, masks of the salient object.

    Movahedi, Elder, "Design and perceptual validation of performance measures for salient object segmentation" (POCV
    2010).
    """
    palette = torch.tensor([[0, 0, 0], [255, 255, 255]], dtype=torch.uint8)
    names = ("background", "salient object")
    return ImageMaskFolder(root, split, names, masks="binary", palette=palette, transform=transform)


def _code(color: Sequence[int]) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _listed(root: Path, split: str) -> list[tuple[Path, Path]]:
    path = root / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in root.glob("*.txt") if file.stem != "classes")) or "none"
        raise FileNotFoundError(f"{path}: no such list; splits with a list: {there}")
    return [_pair(root, line, f"{path}:{number}") for number, line in read_list(path)]


def _pair(root: Path, line: str, where: str) -> tuple[Path, Path]:
    """Image and mask of a line. Names may have spaces: what is no pair of files is looked for as one name."""
    words = line.split("\t" if "\t" in line else None)
    if len(words) == 2:
        image, mask = found(root, words[0], IMAGE_SUFFIXES, where), found(root, words[1], _MASK_SUFFIXES, where)
        if image is not None and mask is not None:
            return image, mask
    if len(words) == 1 or found(root / "images", line, IMAGE_SUFFIXES, where) is not None:
        image = existing(root / "images", line, IMAGE_SUFFIXES, where)
        return image, existing(root / "masks", line.removesuffix(image.suffix), _MASK_SUFFIXES, where)
    if len(words) > 2:
        raise DataError(f"{where}: a line must be a name, or an image and a mask, got {len(words)} words")
    return existing(root, words[0], IMAGE_SUFFIXES, where), existing(root, words[1], _MASK_SUFFIXES, where)


def _all(root: Path) -> list[tuple[Path, Path]]:
    folder = root / "images"
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return [(image, existing(root / "masks", image.stem, _MASK_SUFFIXES, str(folder))) for image in images]
