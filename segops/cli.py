"""The `segops` command."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as error:
    # This module is imported only to run the command, whose user wants a line to act on rather than a traceback.
    sys.exit(f"segops: the command line needs {error.name}; install it with: pip install 'segops[demo]'")

import segops

app = typer.Typer(
    name="segops",
    help="Hand-written kernels for image segmentation as PyTorch operators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
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
        from segops.engine.output import RunError
    except ModuleNotFoundError as error:
        _stop(f"the demo needs {error.name}; install it with: pip install 'segops[demo]'", 1)
    config = dataclasses.replace(QUICK if quick else DemoConfig(), out=out, seed=seed, threads=threads)
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    try:
        run_demo(config, Console())
    except RunError as error:
        _stop(str(error), error.exit_code)


@app.command()
def info() -> None:
    """Print versions, the instruction set of the kernels, and the state of each backend."""
    typer.echo(segops.show_config())


def _stop(message: str, exit_code: int) -> None:
    typer.echo(f"segops: {message}", err=True)
    raise typer.Exit(exit_code)


def main() -> None:
    """Entry point of the `segops` command."""
    app(prog_name="segops")


if __name__ == "__main__":
    main()
