"""max_pool2d and max_unpool2d in plain PyTorch, by their definitions: one tap of all windows after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """The windows along one dimension: tap k of window i is at i * stride - padding + k * dilation."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def windows(self, size: int, ceil_mode: bool) -> int:
        """How many windows pooling has; with ceil_mode none of them begins in the padding behind the input."""
        room = size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        if not ceil_mode:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= size + self.padding else count

    def positions(self, windows: int, tap: int, device: torch.device) -> Tensor:
        return torch.arange(windows, device=device) * self.stride - self.padding + tap * self.dilation


def axes(window: list[int]) -> tuple[Axis, Axis]:
    """The two axes of [kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w]."""
    return Axis(*window[::2]), Axis(*window[1::2])


def _taps(window: list[int], h: int, w: int, height: int, width: int, device: torch.device) -> Iterator[tuple]:
    """(tap, rows [h], columns [w], whether inside [h, w]) of each tap in row-major order."""
    vertical, horizontal = axes(window)
    for tap in range(vertical.kernel * horizontal.kernel):
        rows = vertical.positions(h, tap // horizontal.kernel, device)
        columns = horizontal.positions(w, tap % horizontal.kernel, device)
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        yield tap, rows.clamp(0, height - 1), columns.clamp(0, width - 1), inside


def max_pool2d(input: Tensor, window: list[int], ceil_mode: bool) -> tuple[Tensor, Tensor]:
    """The maximum of each window and the tap it is at: a later tap wins if it is larger, or NaN."""
    n, c, height, width = input.shape
    vertical, horizontal = axes(window)
    h, w = vertical.windows(height, ceil_mode), horizontal.windows(width, ceil_mode)
    output = input.new_zeros((n, c, h, w))
    indices = torch.zeros((n, c, h, w), dtype=torch.uint8, device=input.device)
    empty = torch.ones((n, c, h, w), dtype=torch.bool, device=input.device)
    for tap, rows, columns, inside in _taps(window, h, w, height, width, input.device):
        value = input[:, :, rows][:, :, :, columns]
        wins = inside & (empty | (value > output) | (value != value))
        output = torch.where(wins, value, output)
        indices = torch.where(wins, tap, indices)
        empty = empty & ~inside
    return output, indices


def local_to_flat(indices: Tensor, height: int, width: int, window: list[int]) -> Tensor:
    """int64 y * width + x of each local index; -1 where that is outside its window or the image."""
    h, w = indices.shape[-2:]
    flat = torch.full(indices.shape, -1, dtype=torch.int64, device=indices.device)
    for tap, rows, columns, inside in _taps(window, h, w, height, width, indices.device):
        flat = torch.where((indices == tap) & inside, rows[:, None] * width + columns, flat)
    return flat


def flat_to_local(indices: Tensor, height: int, width: int, window: list[int]) -> Tensor:
    """int64 tap of each flat index; -1 where it is none of its window."""
    h, w = indices.shape[-2:]
    local = torch.full(indices.shape, -1, dtype=torch.int64, device=indices.device)
    for tap, rows, columns, inside in _taps(window, h, w, height, width, indices.device):
        local = torch.where((indices == rows[:, None] * width + columns) & inside, tap, local)
    return local


def latest(flat: Tensor, height: int, width: int) -> Tensor:
    """Whether each window is the latest in row-major order of those with the same flat index; not where that is -1."""
    n, c, h, w = flat.shape
    rank = torch.arange(h * w, device=flat.device).expand(n, c, -1)
    target = flat.flatten(2) + 1  # 0: nowhere
    owner = torch.full((n, c, height * width + 1), -1, dtype=torch.int64, device=flat.device)
    owner = owner.scatter_reduce(2, target, rank, "amax")
    return ((owner.gather(2, target) == rank) & (target > 0)).view(flat.shape)


def max_unpool2d(input: Tensor, flat: Tensor, height: int, width: int) -> Tensor:
    """Zeros [N, C, height, width], each input at its flat index (-1: nowhere); of several at one place the latest.

    The gradient goes to that one alone, which is the derivative.
    """
    n, c = input.shape[:2]
    places = torch.where(latest(flat, height, width), flat + 1, 0).flatten(2)
    output = input.new_zeros((n, c, height * width + 1)).scatter(2, places, input.flatten(2))
    return output[:, :, 1:].reshape(n, c, height, width)


class _Flat(torch.autograd.Function):
    """max_unpool2d with torch's gradient: that of an element goes to every input that points at it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, flat: Tensor, height: int, width: int) -> Tensor:
        ctx.save_for_backward(flat)
        return max_unpool2d(input, flat, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (flat,) = ctx.saved_tensors
        there = flat >= 0
        gradient = grad.flatten(2).gather(2, flat.clamp(min=0).flatten(2)).view(flat.shape)
        return torch.where(there, gradient, 0), None, None, None


def max_unpool2d_flat(input: Tensor, flat: Tensor, height: int, width: int) -> Tensor:
    output: Tensor = _Flat.apply(input, flat, height, width)
    return output
