"""The splits of a run: a dataset by name, and what is done to its images before they come to the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from segops.data import DataError, as_pair, open_dataset, train_transform
from segops.engine import interrupt
from segops.engine.config import TrainConfig
from segops.engine.output import RunError


def open_split(name: str, root: Path | None, split: str) -> Any:
    """:func:`segops.data.open_dataset` without a transform: items (image float [3, H, W] in 0 .. 1, mask [H, W]).

    Raises:
        RunError: there is no such dataset or split, or its files are not as they should be.
    """
    try:
        return open_dataset(name, root, split)
    except (FileNotFoundError, DataError) as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise RunError(str(error), exit_code=2) from error


class ForTraining:
    """:func:`segops.data.train_transform` of a configuration, whose images are normalised later, in batches.

    Where an image is smaller than the crop, it is padded with the mean, which is labelled `ignore_index` (0 without
    one).
    """

    def __init__(self, config: TrainConfig, ignore_index: int | None) -> None:
        from torchvision.transforms import v2

        if config.scale is not None and config.crop is None:
            raise RunError("scale needs crop: scaled images differ in size", exit_code=2)
        self.resize = None if config.resize is None else v2.Resize(config.resize)
        flip = 0.5 if config.flip else 0.0
        self.augment = train_transform(
            config.crop, ignore_index or 0, scale=config.scale, flip=flip, jitter=0, mean=config.mean, std=None
        )

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pair = as_pair(image, mask)
        image, mask = self.augment(*(pair if self.resize is None else self.resize(*pair)))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def batch_of(items: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Images [n, 3, H, W] and masks [n, H, W] of items for a training step.

    Raises:
        DataError: they differ in size.
    """
    sizes = sorted({tuple(image.shape[-2:]) for image, _ in items})
    if len(sizes) > 1:
        some = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
        raise DataError(f"images of different sizes, {some}, make no batch: set crop or resize")
    return default_collate(list(items))


class Share(Dataset[tuple[Tensor, Tensor]]):
    """Every `count`-th item of a dataset from `rank` on: each item belongs to one rank, and to one only."""

    def __init__(self, dataset: Any, rank: int, count: int) -> None:
        self.dataset, self.indices = dataset, range(rank, len(dataset), count)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.dataset[self.indices[index]]


def batches_of_one_size(dataset: Any, batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [n, 3, H, W] and masks [n, H, W] in the dataset's order; those of different sizes are not put together."""
    loader = DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=interrupt.ignore if workers else None,
        generator=torch.Generator(),  # else the loader draws a number from torch's, and training goes on with others
    )
    for items in loader:
        group: list[tuple[Tensor, Tensor]] = []
        for item in items:
            if group and group[0][0].shape != item[0].shape:
                yield _stacked(group)
                group = []
            group.append(item)
        yield _stacked(group)


def _stacked(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, masks = zip(*items, strict=True)
    return torch.stack(images), torch.stack(masks)
