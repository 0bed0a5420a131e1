"""What the accumulating metrics share: a tensor of sums that ranks add up."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self


class SummedMetric:
    """A metric whose state is one tensor of sums, on the device of what it was given.

    Its own sums and those of all ranks are kept apart, so that :meth:`sync` may be called after every epoch or batch
    without counting anything twice.
    """

    def __init__(self) -> None:
        self._own: Tensor | None = None
        self._of_all_ranks: Tensor | None = None

    def reset(self) -> None:
        """Forget everything."""
        self._own = self._of_all_ranks = None

    def sync(self, process_group: Any = None) -> Self:
        """Let :meth:`compute` tell of all ranks, until the next update or reset. Each rank must call it.

        One all_reduce of the sums. A rank that has seen nothing takes part with zeros.

        Args:
            process_group: of torch.distributed; the default one if None.

        Raises:
            TypeError, ValueError: not a process group, none is there, or this rank is not in it.
        """
        group = checked_group(process_group, type(self).__name__)
        total = self._empty().to(collective_device(group)) if self._own is None else self._own.clone()
        dist.all_reduce(total, group=group)
        self._of_all_ranks = total
        return self

    def _empty(self) -> Tensor:
        """The sums of nothing, on the CPU."""
        raise NotImplementedError

    def _sums(self) -> Tensor:
        for sums in (self._of_all_ranks, self._own):
            if sums is not None:
                return sums
        return self._empty()

    def _add(self, sums: Tensor) -> None:
        if self._own is not None and self._own.device != sums.device:
            raise ValueError(
                f"segops.metrics.{type(self).__name__}: tensors must be on {self._own.device} like those of earlier "
                f"updates, got {sums.device}"
            )
        self._own = sums if self._own is None else self._own + sums
        self._of_all_ranks = None


def checked_group(process_group: Any, metric: str) -> Any:
    """The group itself, or the default one."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(f"segops.metrics.{metric}: sync needs an initialised torch.distributed")
    if process_group is None:
        process_group = dist.group.WORLD
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"segops.metrics.{metric}: process_group must be a torch.distributed.ProcessGroup or None, "
            f"got {type(process_group).__name__}"
        )
    if dist.get_rank(process_group) < 0:
        raise ValueError(f"segops.metrics.{metric}: process_group must contain this rank")
    return process_group


def collective_device(group: Any) -> torch.device:
    """Where tensors of a collective may live that come from no input."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    )
