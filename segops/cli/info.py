"""segops info"""

from __future__ import annotations

import typer

import segops


def info() -> None:
    """Print versions, the instruction set of the kernels, and the state of each backend."""
    typer.echo(segops.show_config())
