"""segops bench"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from segops.engine.output import RunError


def bench(
    operators: Annotated[list[str] | None, typer.Argument(help="Names of operators; by default all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each.")] = 15,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch; by default its own choice.")] = None,
) -> None:
    """Time the operators on this machine against PyTorch's; the result of each is checked first."""
    import torch

    from segops.engine import op_table

    names = list(dict.fromkeys(entry.operator for entry in op_table.ENTRIES))
    for name in operators or []:
        if name not in names:
            raise RunError(f"there is no operator {name!r} to time; there are {', '.join(names)}", exit_code=2)
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [entry for entry in op_table.ENTRIES if not operators or entry.operator in operators]
    comparisons = [op_table.compare(entry, rounds) for entry in chosen]
    Console().print(op_table.render(comparisons))
    if wrong := [f"{c.operator} ({c.what})" for c in comparisons if not c.correct]:
        raise RunError(f"the results of {', '.join(wrong)} differ from float64 by more than PyTorch's do")
