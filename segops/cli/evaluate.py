"""segops evaluate"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="File that `segops train` has written.", metavar="CHECKPOINT")],
    data: Annotated[str | None, typer.Option(help="Dataset; by default that of the training.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Its folder; by default the training's, if it is the same dataset.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="By default that which the training measured on.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all scores to this file, too.")] = None,
) -> None:
    """Measure a trained network on a split; with torchrun the images are shared out to the processes."""
    from segops.engine.inference import evaluate as run
    from segops.engine.output import OutputDirectory

    output = None if json_file is None else OutputDirectory(json_file.parent, (json_file.name,))
    scores, classes, first = run(checkpoint, data, root, split, batch_size, workers, device)
    if not first:
        return
    console = Console()
    table = Table("class", "IoU", "Dice", "precision", "recall")
    for i, name in enumerate(classes.names):
        table.add_row(name, *(f"{scores[key][i]:.4f}" for key in ("iou", "dice", "precision", "recall")))
    console.print(table)
    for name, value in scores.items():
        if isinstance(value, float):
            console.print(f"{name} {value:.4f}", highlight=False)
    if output is not None and json_file is not None:
        output.write(json_file.name, (json.dumps(_numbers(scores), indent=1, allow_nan=False) + "\n").encode())


def _numbers(value: Any) -> Any:
    """What JSON has: null for the score of a class that does not occur."""
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
