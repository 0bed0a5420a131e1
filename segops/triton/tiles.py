"""Images that are dense in memory cut into tiles: rows of a plane, or of an image where channels are last."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # elements of a program


@triton.jit
def tile_of_program(height, width, channels, ACROSS: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr):
    """Of this program: image, row numbers, positions in the row, channels and columns of those, where a row begins, and
    what of the tile is in the image.

    A plane has one channel, in a block of one element.
    """
    row = width * channels if ACROSS else width
    tiles = tl.cdiv(row, BLOCK_X)
    strips = tl.cdiv(height, BLOCK_Y)
    program = tl.program_id(0)
    plane = program // (tiles * strips)
    y = program // tiles % strips * BLOCK_Y + tl.arange(0, BLOCK_Y)
    at = program % tiles * BLOCK_X + tl.arange(0, BLOCK_X)
    begin = (plane.to(tl.int64) * height + y) * row
    inside = (y < height)[:, None] & (at < row)[None, :]
    if ACROSS:
        return plane, y, at, at % channels, at // channels, begin, inside
    else:
        return plane // channels, y, at, plane % channels + tl.zeros((1,), tl.int32), at, begin, inside


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
