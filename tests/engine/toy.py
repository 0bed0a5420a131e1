"""A network and a dataset that train in milliseconds, for the tests of the engine; importable by other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segops.engine.checkpoint import Classes
from segops.engine.config import TrainConfig
from segops.engine.trainer import Trainer
from segops.models import SegmentationModel

CLASSES = 3


class Squares:
    """Images whose label is told by their colour: [3, 12, 16], three classes, label 255 counts nowhere."""

    classes = ("dark", "red", "green")
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    num_classes = CLASSES
    ignore_index = 255

    def __init__(self, length: int, dtype: torch.dtype = torch.float32) -> None:
        self.length, self.dtype = length, dtype

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        mask = torch.randint(0, CLASSES, (3, 4), generator=generator)
        mask = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
        colours = torch.tensor(self.palette).float() / 255
        image = 0.5 * colours[mask].movedim(-1, 0) + 0.2 * torch.rand(3, 12, 16, generator=generator)
        mask[0, 0] = 255
        return image.to(self.dtype), mask


class Toy(SegmentationModel):
    """Two convolutions, dropout, and logits at half and at a quarter of the size."""

    has_side_outputs = True

    def __init__(self, norm: bool = True, dropout: float = 0.1, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.second = nn.Conv2d(8, 8, 3, 2, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.heads = nn.ModuleList(nn.Conv2d(8, classes, 1) for _ in range(2))

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        fine = self.norm(self.first(input)).relu()
        logits = [self.heads[0](self.dropout(fine))]
        if side_outputs:
            logits.append(self.heads[1](self.second(fine).relu()))
        return logits


def config(out: Path, **values: Any) -> TrainConfig:
    defaults = {"out": out, "batch_size": 4, "steps": 7, "lr": 0.02, "log_every": 1, "pictures": 0, "save_every": 100}
    return TrainConfig(**{**defaults, **values})


def trainer(settings: TrainConfig, model: nn.Module | None = None, length: int = 10, **arguments: Any) -> Trainer:
    """With `length` images to train on, so that 4 of a batch leave 2 for the last one, and 5 to measure on."""
    settings.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model = model or Toy()
    dtype = next(model.parameters()).dtype
    data = Squares(length, dtype)
    classes = Classes.of("squares", data)
    return Trainer(settings, model, CLASSES, data, Squares(5, dtype), classes, **arguments)
