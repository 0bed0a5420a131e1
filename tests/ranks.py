"""Ranks of torch.distributed on one machine: processes that gloo joins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch.distributed has no gloo here"
)


@contextlib.contextmanager
def joined(folder: Path, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """This process is a rank of torch's default group; they meet in the folder."""
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    try:
        yield
    finally:
        dist.destroy_process_group()


def results_of(ranks: int, folder: Path, run: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What run(rank, ranks, *arguments) returns in the process of each rank."""
    torch.multiprocessing.start_processes(_run, (ranks, folder, run, arguments), nprocs=ranks, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _run(rank: int, ranks: int, folder: Path, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with joined(folder, rank, ranks):
        torch.save(run(rank, ranks, *arguments), folder / f"{rank}.pt")
