"""segops demo"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from segops.engine.output import RunError


def demo(
    out: Annotated[Path, typer.Option(help="Directory for the pictures and the record.")] = Path("segops-demo"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers on the same machine.")] = 0,
    model: Annotated[str, typer.Option(help="Network to train: a name that `segops models` prints.")] = "segnet_basic",
    size: Annotated[int | None, typer.Option(min=32, help="Height and width of the scenes.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, in place of the usual number.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch; by default its own choice.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage in seconds; the network learns little.")] = False,
) -> None:
    """Train a small SegNet-Basic, or another network, on scenes of digits, and time the operators here."""
    try:
        from segops.engine.demo import QUICK, DemoConfig, run_demo
    except ModuleNotFoundError as error:
        raise RunError(f"the demo needs {error.name}; install it with: pip install 'segops[demo]'") from error
    config = dataclasses.replace(QUICK if quick else DemoConfig(), out=out, model=model, seed=seed, threads=threads)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if size is not None:
        config = dataclasses.replace(config, size=size)
    run_demo(config, Console())
