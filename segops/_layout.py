"""Memory layouts that kernels read as they are."""

from __future__ import annotations

from torch import Tensor


def pixel_stride(x: Tensor) -> int | None:
    """The stride between pixels of x [N, C, *spatial]: 1 is planar, more is channels last, None needs a copy."""
    innermost, expected = None, 0
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size == 1:
            continue
        if innermost is None:
            innermost = stride
        elif stride != expected:
            return None
        expected = stride * size
    if innermost is None or innermost == 1:
        return 1
    return innermost if x.stride(1) == 1 else None
