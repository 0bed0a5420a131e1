"""Images, masks and list files as tensors and paths; whatever is wrong with one, the error names it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

#: How a mask file tells classes: by the number of each pixel (grey values or indices of a palette), by what is lighter
#: than 128 of 255, or by colours.
MaskKind = Literal["index", "binary", "color"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

_INDEX_MODES = ("P", "L", "1", "I;16", "I")


class DataError(ValueError):
    """A file that cannot be used; the message begins with its path."""


def pillow() -> Any:
    """The module PIL.Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"segops.data reads images with pillow ({error}): pip install 'segops[train]'") from error
    return Image


def read_image(path: Path) -> Tensor:
    """RGB, uint8 [3, H, W].

    Raises:
        FileNotFoundError, DataError: no file, no image, a truncated one, or one beyond ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    pixels = np.array(_decoded(path).convert("RGB"))
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


def read_mask(path: Path, kind: MaskKind, colors: dict[int, int] | None = None) -> Tensor:
    """Labels as the file has them, int64 [H, W], or 0 and 1 of a binary mask.

    Args:
        colors: for masks by colour, the label of each colour 0xRRGGBB.

    Raises:
        FileNotFoundError, DataError: as :func:`read_image`; a file that is not of its kind, an unknown colour.
    """
    image = _decoded(path)
    if kind == "binary":
        return torch.from_numpy(np.array(image.convert("L")) > 128).long()
    if kind == "index":
        if image.mode not in _INDEX_MODES:
            raise DataError(f"{path}: a mask of class numbers must be a grey or palette image, got mode {image.mode}")
        return torch.from_numpy(np.array(image).astype(np.int64))
    red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int64), -1, 0)
    found, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    colors = colors or {}
    if unknown := [f"#{color:06x}" for color in found.tolist() if color not in colors]:
        raise DataError(f"{path}: {len(unknown)} color(s) that the palette does not have, the first is {unknown[0]}")
    labels = np.array([colors[color] for color in found.tolist()], dtype=np.int64)
    return torch.from_numpy(labels[places.reshape(red.shape)])


def check_labels(labels: Tensor, classes: int, ignore_index: int | None, path: Path) -> None:
    """Raise DataError for labels that are neither in 0 .. classes - 1 nor ignored."""
    bad = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        bad &= labels != ignore_index
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        ignored = "" if ignore_index is None else f" or {ignore_index} (ignored)"
        raise DataError(
            f"{path}: labels must be in 0 .. {classes - 1}{ignored}, got {int(bad.sum())} others; the first is "
            f"{int(labels[row, column])} in row {row}, column {column}"
        )


def check_kind(kind: str) -> None:
    """Raise ValueError for what is no MaskKind."""
    if kind not in get_args(MaskKind):
        raise ValueError(f"segops.data: masks must be one of {', '.join(get_args(MaskKind))}, got {kind!r}")


def read_list(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that hold one or two words, with their numbers from 1; empty lines are skipped.

    Raises:
        FileNotFoundError, DataError: no file, not UTF-8 text, no line, or a line of more words.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a list must be UTF-8 text ({error})") from error
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, words in lines:
        if len(words) > 2:
            raise DataError(f"{path}:{number}: a line must be a name, or an image and a mask, got {len(words)} words")
    if not lines:
        raise DataError(f"{path}: the list is empty")
    return lines


def inside(root: Path, name: str, where: str) -> Path:
    """The path of a name in a list, which may not lead out of the data. Links in there are followed: they are yours.

    Args:
        where: list and line, for the message.

    Raises:
        DataError: an absolute path, or one with too many "..".
    """
    relative = os.path.normpath(name.replace("\\", "/"))
    if os.path.isabs(relative) or Path(relative).drive or relative.split(os.sep)[0] == os.pardir:
        raise DataError(f"{where}: {name!r} leaves the data's folder {root}")
    return root / relative


def existing(folder: Path, name: str, suffixes: Sequence[str], where: str) -> Path:
    """The file of a name that may come without its suffix.

    Raises:
        FileNotFoundError: there is none.
    """
    path = inside(folder, name, where)
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in suffixes)):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path}: no such file (with or without {', '.join(suffixes)}), listed in {where}")


def _decoded(path: Path) -> Any:
    image_module = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            image = image_module.open(path)
            image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        size = os.path.getsize(path)
        raise DataError(
            f"{path}: a file of {size:,} bytes says that it holds an absurdly large image: {error}"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what pillow's decoders raise for corrupt files
        reason = "not an image of a known format" if isinstance(error, image_module.UnidentifiedImageError) else error
        raise DataError(f"{path}: cannot be read: {reason}") from error
    return image
