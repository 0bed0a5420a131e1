"""A progress bar with throughput and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Images a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        if task.speed is None:
            return Text("- images/s")
        return Text(f"{task.speed * task.fields['batch']:.1f} images/s")


class TrainingProgress:
    """Steps of a training on a console; a context manager.

    Args:
        console: to draw on.
        done: steps before this run.
        steps: of the whole training.
        batch_size: images of a step.
    """

    def __init__(self, console: Console, done: int, steps: int, batch_size: int) -> None:
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[report]}"),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("", total=steps, completed=done, report="", batch=batch_size)
        self.values: dict[str, float] = {}

    def __enter__(self) -> TrainingProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def advance(self) -> None:
        self.progress.advance(self.task)

    def report(self, **values: Any) -> None:
        """Show these numbers, by name, until others of the same names come."""
        self.values |= values
        self.progress.update(self.task, report=" ".join(f"{name} {value:.4f}" for name, value in self.values.items()))
