"""segops models"""

from __future__ import annotations

import math
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from segops.engine.output import RunError

_CLASSES = 19


def models(
    names: Annotated[list[str] | None, typer.Argument(help="Networks; all of them by default.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the image, in pixels.")] = 512,
    layers: Annotated[bool, typer.Option("--layers", help="Each layer of the networks named, too.")] = False,
) -> None:
    """Published networks: parameters, multiply-adds, output stride, receptive field and peak activation memory.

    Of one image in inference, float32, for 19 classes or for one salient object.
    """
    import torch

    from segops.models import create_model, list_models, registry, summary

    console = Console()
    table = Table("network", *_COLUMNS)
    for name in names or list_models():
        try:
            with torch.device("meta"):
                model = create_model(name, registry.entry(name).num_classes or _CLASSES)
            found = summary(model, size)
        except ValueError as error:  # no such network, or a size that it does not take
            raise RunError(str(error), exit_code=2) from error
        field, strides = found.receptive_field, (found.output_stride, found.output_stride)
        table.add_row(name, *_cells(found.parameters, found.multiply_adds, strides, field, found.peak_activation_bytes))
        if layers:
            of_layers = Table("layer", "kind", *_COLUMNS[:-1], "MB", title=name)
            for layer in found.layers:
                cells = _cells(
                    layer.parameters, layer.multiply_adds, layer.output_stride, layer.receptive_field,
                    layer.activation_bytes,
                )  # fmt: skip
                of_layers.add_row(layer.name, layer.kind, *cells)
            console.print(of_layers)
    console.print(table)


_COLUMNS = ("parameters", "G multiply-adds", "stride", "receptive field", "peak MB")


def _cells(
    parameters: int,
    multiply_adds: int,
    strides: tuple[float, float] | None,
    field: tuple[float, float] | None,
    memory: int,
) -> tuple[str, ...]:
    pairs = ("" if pair is None else _number(max(pair)) for pair in (strides, field))
    return f"{parameters:,}", f"{multiply_adds / 1e9:.2f}", *pairs, f"{memory / 1e6:.1f}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "all"
