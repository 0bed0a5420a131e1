"""segops predict"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from segops.engine.output import RunError


def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, folders of them, and patterns such as 'a/*.png'.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="File that `segops train` has written.")],
    out: Annotated[Path, typer.Option(help="Folder for the label pictures.")] = Path("segops-predictions"),
    overlay: Annotated[bool, typer.Option(help="Also write each image with its labels over it.")] = True,
    tile: Annotated[
        int | None, typer.Option(min=1, help="Side of the square tiles that large images are labelled in.")
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of neighbouring tiles, as a part of their side.")
    ] = 0.25,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Label images: NAME.png holds each pixel's class, shown in the dataset's colours; NAME_overlay.png both."""
    from segops.engine.inference import predict as run

    console = Console()

    def warn(line: str) -> None:
        typer.echo(f"segops: {line}", err=True)

    done, failed = run(checkpoint, images, out, overlay, device, warn, tile, overlap)
    console.print(f"{done} images labelled in {out}", highlight=False, soft_wrap=True)
    if failed:
        raise RunError(f"{len(failed)} of {done + len(failed)} images could not be labelled: {', '.join(failed)}")
