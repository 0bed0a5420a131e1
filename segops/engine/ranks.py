"""The processes of one training: who this one is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from segops.engine.output import RunError

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    Attributes:
        rank: of this process; 0 writes the files and talks to the user.
        count: of processes.
        device: of this process.
        group: for tensors of the device; None where there is one process.
        control: for what the processes tell each other without waiting for a device.
    """

    rank: int
    count: int
    device: torch.device
    group: Any = None
    control: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def any(self, flag: int) -> int:
        """The largest of all ranks' flags. Every rank must call it."""
        if self.count == 1:
            return flag
        largest = torch.tensor(flag)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return int(largest)

    def gathered(self, item: Any) -> list[Any]:
        """The items of all ranks, in their order. Every rank must call it."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item, group=self.control)
        return items

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the first one's buffers, such as batch norm's statistics. Every rank must call it."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0, group=self.group)


def chosen_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a setting: "auto" is a CUDA device where there is one.

    Raises:
        RunError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}", exit_code=2) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RunError(f"device {name!r}: torch {torch.__version__} finds no CUDA device")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise RunError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices")
    elif device.type != "cpu":
        raise RunError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}", exit_code=2)
    return device


@contextmanager
def started(device: str, timeout: timedelta = _TIMEOUT) -> Iterator[Ranks]:
    """Join the other processes where torchrun has started several; alone otherwise.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        timeout: after which a rank that does not answer counts as dead.

    Raises:
        RunError: another process ended or does not answer.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own = chosen_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if count == 1:
        yield Ranks(0, 1, own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=timeout)
    group = dist.group.WORLD
    control = dist.new_group(backend="gloo", timeout=timeout) if own.type == "cuda" else group
    try:
        yield Ranks(rank, count, own, group, control)
    except RuntimeError as error:
        if not _lost(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(f"rank {rank} of {count} stops: another rank ended or does not answer ({reason})") from error
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether a collective failed for want of a partner: gloo has no exception of its own for that."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
