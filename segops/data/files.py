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
    """RGB, uint8 [3, H, W]: of 16 bits the upper eight, of transparent pixels their colour.

    Raises:
        FileNotFoundError, DataError: no file, no image, a truncated one, one beyond ``PIL.Image.MAX_IMAGE_PIXELS``, or
            one of floating-point or 32-bit values, whose white is not known.
    """
    pixels = np.array(_of_eight_bits(_decoded(path), path).convert("RGB"))
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


def read_mask(path: Path, kind: MaskKind, colors: dict[int, int] | None = None) -> Tensor:
    """Labels as the file has them, int64 [H, W], or 0 and 1 of a binary mask.

    Args:
        colors: for masks by colour, the label of each colour 0xRRGGBB.

    Raises:
        FileNotFoundError, DataError: as :func:`read_image`; a file that is not of its kind, an unknown colour, or
            transparent pixels, of which nobody knows what they stand for.
    """
    image = _decoded(path)
    if kind == "index":
        if image.mode not in _INDEX_MODES:
            raise DataError(f"{path}: a mask of class numbers must be a grey or palette image, got mode {image.mode}")
        return torch.from_numpy(np.array(image).astype(np.int64))
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
        raise DataError(f"{path}: a mask must have no transparent pixels; whether they are its object is not known")
    image = _of_eight_bits(image, path)
    if kind == "binary":
        return _binary(np.array(image.convert("L")), path)
    red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int64), -1, 0)
    found, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    colors = colors or {}
    if unknown := [f"#{color:06x}" for color in found.tolist() if color not in colors]:
        raise DataError(f"{path}: {len(unknown)} color(s) that the palette does not have, the first is {unknown[0]}")
    labels = np.array([colors[color] for color in found.tolist()], dtype=np.int64)
    return torch.from_numpy(labels[places.reshape(red.shape)])


def _binary(grey: Any, path: Path) -> Tensor:
    """1 where grey values [H, W] are above 128 of 255."""
    if grey.max(initial=0) <= 128 and len(values := np.unique(grey)) == 2:  # noise has more
        raise DataError(
            f"{path}: a binary mask must be lighter than 128 of 255 on the object, all of this one is {values[0]} or "
            f"{values[1]}: class numbers, maybe"
        )
    return torch.from_numpy(grey > 128).long()


def _of_eight_bits(image: Any, path: Path) -> Any:
    """The image with at most 8 bits a channel; pillow's own conversion cuts off what is above 255."""
    # Before version 11 pillow has 16 bits of a PNG as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return pillow().fromarray((np.array(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: pixels must have at most 16 bits a channel, got mode {image.mode}")
    return image


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


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines with their numbers from 1, without the spaces around them; empty ones are skipped.

    Raises:
        FileNotFoundError, DataError: no file, not UTF-8 text, or no line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # with the mark that editors on Windows begin with, or without
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a list must be UTF-8 text ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
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


def found(folder: Path, name: str, suffixes: Sequence[str], where: str) -> Path | None:
    """The file of a name that may come without its suffix, in either case; None if there is none."""
    path = inside(folder, name, where)
    endings = ("", *suffixes, *(suffix.upper() for suffix in suffixes))
    candidates = (path.with_name(path.name + ending) for ending in endings)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def existing(folder: Path, name: str, suffixes: Sequence[str], where: str) -> Path:
    """The file that :func:`found` finds.

    Raises:
        FileNotFoundError: there is none.
    """
    path = found(folder, name, suffixes, where)
    if path is None:
        missing = inside(folder, name, where)
        raise FileNotFoundError(f"{missing}: no such file (with or without {', '.join(suffixes)}), listed in {where}")
    return path


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
