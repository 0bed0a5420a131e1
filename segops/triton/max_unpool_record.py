"""The record of indices that point nowhere. Its atomics are on integers: their order does not matter."""

from __future__ import annotations

import triton
import triton.language as tl

# Beyond every position: END less the position is largest for the first one, and larger than the zero at the start.
END = tl.constexpr(1 << 62)


@triton.jit
def note_bad(seen, bad, n, c, y, x, channels, height, width):
    """Add what is bad in a tile of indices [N, C, height, width] to `seen`, int64 [2]: count, `END` less the first."""
    count = tl.sum(bad.to(tl.int32))
    if count > 0:
        plane = n.to(tl.int64) * channels + c
        position = (plane[None, :] * height + y[:, None]) * width + x[None, :]
        tl.atomic_add(seen, count.to(tl.int64), sem="relaxed")
        tl.atomic_max(seen + 1, tl.max(tl.where(bad, END - position, 0)), sem="relaxed")


@triton.jit
def max_unpool_record_kernel(indices, seen, record, channels, height, width, index_stride):
    """What was seen as int64 [3]: count, position of the first, its value."""
    lane = tl.arange(0, 1)
    count = tl.load(seen + lane)
    position = tl.where(count > 0, END - tl.load(seen + 1 + lane), 0)
    x, y = position % width, position // width % height
    plane = position // width // height
    at = plane // channels * index_stride[0] + plane % channels * index_stride[1]
    at += y * index_stride[2] + x * index_stride[3]
    value = tl.load(indices + at, mask=count > 0, other=0)
    tl.store(record + lane, count)
    tl.store(record + 1 + lane, position)
    tl.store(record + 2 + lane, value.to(tl.int64))
