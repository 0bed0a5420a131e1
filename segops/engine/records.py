"""What a run writes down while it trains: CSV files, and event files for TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segops.engine.output import RunError


class CsvRecord:
    """A CSV file with a line for each step that is recorded.

    Args:
        path: of the file.
        step: the lines of later steps are dropped, and what a killed process left unfinished: a continued run writes
            them once more.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.header: list[str] | None = None
        if not path.exists():
            return
        header, *lines = list(csv.reader(io.StringIO(path.read_text()))) or [[]]
        kept = [line for line in lines if len(line) == len(header) and line[0].isdigit() and int(line[0]) <= step]
        if header and kept:
            self.header = header
        partial = path.with_name(f"{path.name}.partial")
        with open(partial, "w", newline="") as file:
            csv.writer(file).writerows([header, *kept] if kept else [])
        os.replace(partial, path)

    def add(self, values: Mapping[str, Any]) -> None:
        """Append a line; the first value is the step, and the names are those of the first call."""
        new = self.header is None
        self.header = self.header or list(values)
        try:
            with open(self.path, "a", newline="") as file:
                writer = csv.DictWriter(file, self.header)
                if new:
                    writer.writeheader()
                writer.writerow(values)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error
        except ValueError as error:
            raise RunError(f"{self.path} has other columns than this run: {error}") from error


class Records:
    """All records of a run, in its folder.

    Args:
        folder: of the run.
        step: the training continues after it; 0 is a new one.
        tensorboard: whether to write event files, into the subfolder "tensorboard".

    Raises:
        RunError: tensorboard is wanted and not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.folder = folder
        self.training = CsvRecord(folder / "train.csv", step)
        self.validation = CsvRecord(folder / "val.csv", step)
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                message = "tensorboard is not installed; install it with: pip install 'segops[train]'"
                raise RunError(message) from error
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def train(self, values: Mapping[str, Any]) -> None:
        self.training.add(values)
        self._scalars("train", values)

    def validate(self, values: Mapping[str, Any]) -> None:
        self.validation.add(values)
        self._scalars("val", values)

    def picture(self, step: int, png: bytes) -> None:
        """Write pictures/<step>.png."""
        path = self.folder / "pictures" / f"{step:07}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        if self.writer is not None:
            from PIL import Image

            with Image.open(path) as image:
                self.writer.add_image("val/prediction", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _scalars(self, group: str, values: Mapping[str, Any]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                if name not in ("step", "epoch"):
                    self.writer.add_scalar(f"{group}/{name}", value, values["step"])
