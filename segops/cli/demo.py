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
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, in place of the usual number.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch; by default its own choice.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage in seconds; the network learns little.")] = False,
) -> None:
    """Train a small U-Net on scenes of digits (about two minutes), and time the operators of this machine."""
    try:
        from segops.engine.demo import QUICK, DemoConfig, run_demo
    except ModuleNotFoundError as error:
        raise RunError(f"the demo needs {error.name}; install it with: pip install 'segops[demo]'") from error
    config = dataclasses.replace(QUICK if quick else DemoConfig(), out=out, seed=seed, threads=threads)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    run_demo(config, Console())
