"""Scenes of handwritten digits over photographs: a segmentation dataset that needs no download."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

_HELD_OUT = 0.3  # the last part of the digits, and of the columns of each photograph, belongs to "val"
_SCALE = (0.22, 0.36)  # height of a digit in units of the scene's shorter side
_INK = 0.4  # from here on a pixel belongs to the digit


@lru_cache(maxsize=2)
def _sources(split: str) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """What a split draws from: glyphs [K, 8, 8] in 0..1, their digits [K], photographs [3, h, w] in 0..1."""
    try:
        import PIL  # noqa: F401  (scikit-learn decodes its photographs with it)
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError(
            f"DigitScenes needs scikit-learn and pillow ({error}); install them with: pip install 'segops[demo]'"
        ) from error
    digits = load_digits()
    glyphs = torch.from_numpy(digits.images).float() / 16
    values = torch.from_numpy(digits.target).long()
    photos = [torch.from_numpy(photo.copy()).movedim(-1, 0).float() / 255 for photo in load_sample_images().images]

    def part(count: int) -> slice:
        first_held_out = round(count * (1 - _HELD_OUT))
        return slice(first_held_out) if split == "train" else slice(first_held_out, count)

    rows = part(len(values))
    return glyphs[rows], values[rows], tuple(photo[..., part(photo.shape[-1])].contiguous() for photo in photos)


def _interpolation(start: Tensor, extent: Tensor, length: int) -> Tensor:  # [K], [K] -> [K, length, 8]
    """Bilinear interpolation as matrices: row y of matrix k weighs 8 samples spread over extent[k] from start[k]."""
    position = (torch.arange(length) + 0.5 - start[:, None]) * 8 / extent[:, None] - 0.5
    return (1 - (position[..., None] - torch.arange(8)).abs()).clamp_(min=0)


class DigitScenes(Dataset[tuple[Tensor, Tensor]]):
    """Handwritten digits of random place, scale and colour over random crops of two photographs.

    The digits are the 1797 samples of scikit-learn's ``load_digits`` (Alpaydin & Kaynak 1998, "Optical Recognition of
    Handwritten Digits", UCI Machine Learning Repository), the photographs those of ``load_sample_images``. The splits
    share neither a digit sample nor a pixel of a photograph. Item ``i`` depends only on ``(seed, split, i)`` and on the
    arguments below, in whatever order and process it is asked for. Scenes are drawn on demand: a length costs nothing.

    Args:
        split: "train" or "val".
        length: number of scenes.
        size: (height, width) of a scene in pixels, each at least 32.
        digits: digits drawn per scene; one that finds no free place is left out.
        seed: selects the sequence of scenes; which samples are held out does not depend on it.

    Each item is ``(image, label)``: image float32 [3, H, W] in 0..1, label int64 [H, W] with 0 for background and
    digit + 1 on a digit.

    Raises:
        ValueError: an unknown split, a negative length, no digits, or a size below 32.
        ImportError: scikit-learn or pillow is missing.
        IndexError: an index outside the dataset.
    """

    classes: ClassVar[tuple[str, ...]] = ("background", *(str(digit) for digit in range(10)))
    """Name of each class."""

    palette: ClassVar[Tensor] = torch.tensor(
        [
            [24, 24, 32],
            [230, 75, 60],
            [60, 180, 75],
            [255, 215, 50],
            [70, 110, 230],
            [245, 140, 45],
            [155, 70, 190],
            [70, 215, 230],
            [240, 90, 200],
            [190, 240, 90],
            [240, 240, 240],
        ],
        dtype=torch.uint8,
    )
    """RGB colour of each class for pictures, uint8 [11, 3]."""

    def __init__(
        self,
        split: str = "train",
        length: int = 1000,
        size: tuple[int, int] = (64, 64),
        digits: int = 8,
        seed: int = 0,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"DigitScenes: split must be 'train' or 'val', got {split!r}")
        if length < 0:
            raise ValueError(f"DigitScenes: length must not be negative, got {length}")
        if len(size) != 2 or min(size) < 32:
            raise ValueError(f"DigitScenes: size must be (height, width) of at least 32 each, got {size}")
        if digits < 1:
            raise ValueError(f"DigitScenes: digits must be at least 1, got {digits}")
        self.split, self.length, self.size, self.digits, self.seed = split, length, size, digits, seed
        self.glyphs, self.values, self.photos = _sources(split)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -self.length <= index < self.length:
            raise IndexError(f"DigitScenes: index {index} is outside a dataset of {self.length} scenes")
        # A string seed goes through SHA-512: the same stream in every process, unrelated ones for neighbouring items.
        rng = random.Random(f"{self.seed}/{self.split}/{index % self.length}")
        background = self._background(rng)
        boxes = self._boxes(rng)
        which = torch.tensor([rng.randrange(len(self.glyphs)) for _ in boxes])
        tint = torch.tensor([[rng.uniform(0.55, 1.0) for _ in range(3)] for _ in boxes])  # [K, 3]

        top, left, height, width = torch.tensor(boxes).T
        rows = _interpolation(top, height, self.size[0])  # [K, H, 8]
        columns = _interpolation(left, width, self.size[1])  # [K, W, 8]
        ink, digit = (rows @ self.glyphs[which] @ columns.mT).max(dim=0)  # [H, W]: how much, and of which of the K

        opacity = (4 * (ink - _INK) + 0.5).clamp_(0, 1)
        image = torch.lerp(background, tint[digit].movedim(-1, 0), opacity)
        label = torch.where(ink > _INK, self.values[which][digit] + 1, 0)
        return image, label

    def _background(self, rng: random.Random) -> Tensor:  # [3, H, W]
        height, width = self.size
        photo = rng.choice(self.photos)
        zoom = min(rng.uniform(0.5, 2.0), photo.shape[1] / height, photo.shape[2] / width)
        crop_height, crop_width = int(height * zoom), int(width * zoom)
        top = rng.randint(0, photo.shape[1] - crop_height)
        left = rng.randint(0, photo.shape[2] - crop_width)
        crop = photo[None, :, top : top + crop_height, left : left + crop_width]
        if rng.random() < 0.5:
            crop = crop.flip(-1)
        crop = F.interpolate(crop, self.size, mode="bilinear", antialias=True)[0]
        return crop.mul_(rng.uniform(0.3, 0.7)).clamp_(0, 1)  # dimmed, so that digits stand out from a white sky too

    def _boxes(self, rng: random.Random) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width of digits that do not overlap."""
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(self.digits):
            height = round(rng.uniform(*_SCALE) * min(self.size))
            width = round(rng.uniform(0.8, 1.0) * height)
            for _ in range(20):
                top, left = rng.randint(0, self.size[0] - height), rng.randint(0, self.size[1] - width)
                if all(top + height <= y or y + h <= top or left + width <= x or x + w <= left for y, x, h, w in boxes):
                    boxes.append((top, left, height, width))
                    break
        return boxes
