"""segops models"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def models() -> None:
    """List the published networks and their numbers of parameters (for 19 classes, or one for salient objects)."""
    import torch

    from segops.models import create_model, list_models, registry

    table = Table("network", "parameters")
    for name in list_models():
        try:
            classes = registry.entry(name).num_classes or 19
        except ModuleNotFoundError:
            continue
        with torch.device("meta"):
            model = create_model(name, classes)
        table.add_row(name, f"{sum(p.numel() for p in model.parameters()):,}")
    Console().print(table)
