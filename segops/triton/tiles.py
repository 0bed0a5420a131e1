"""Images that are dense in memory cut into tiles: rows of a plane, or of an image where channels are last."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._prims_common import suggest_memory_format

TILE = 1024  # elements of a program


@triton.jit
def tile_of_program(rows, row, channels, ACROSS: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr):
    """Of this program: image, row numbers, positions in the row, channels and columns of those, where a row begins.

    A plane has one channel, in a block of one element.
    """
    tiles = tl.cdiv(row, BLOCK_X)
    strips = tl.cdiv(rows, BLOCK_Y)
    program = tl.program_id(0)
    plane = program // (tiles * strips)
    y = program // tiles % strips * BLOCK_Y + tl.arange(0, BLOCK_Y)
    at = program % tiles * BLOCK_X + tl.arange(0, BLOCK_X)
    begin = (plane.to(tl.int64) * rows + y) * row
    if ACROSS:
        return plane, y, at, at % channels, at // channels, begin
    else:
        return plane // channels, y, at, plane % channels + tl.zeros((1,), tl.int32), at, begin


def empty_like_format(x: Tensor, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """A new image [N, C, height, width], dense, in the memory format of x."""
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=suggest_memory_format(x))


def cut(x: Tensor, height: int, width: int, across: bool, tile: int = TILE) -> tuple[int, dict[str, Any]]:
    """How many programs images of x's batch and channels take, and the keywords of `tile_of_program`."""
    n, c = x.shape[:2]
    row, planes = (width * c, n) if across else (width, n * c)
    block_x = min(tile, triton.next_power_of_2(max(row, 1)))
    # Short enough that the last block of a row has few idle lanes, long enough for accesses of whole lines.
    while block_x > 128 and triton.cdiv(row, block_x // 2) < 2 * triton.cdiv(row, block_x):
        block_x //= 2
    block_y = min(tile // block_x, triton.next_power_of_2(height))
    programs = planes * triton.cdiv(height, block_y) * triton.cdiv(row, block_x)
    return programs, {"ACROSS": across, "BLOCK_Y": block_y, "BLOCK_X": block_x}
