"""Calls of upsample_nearest's Triton operators: what is compiled for its machine code, and what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from segops.triton import upsample_nearest as op
from tests.triton import upsample_inputs

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("height", "channels")


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    for shown, x in upsample_inputs.compiled():
        yield shown, functools.partial(op.upsample_nearest2d, x, 128, 128, 0.0, 0.0)
        yield f"backward, {shown}", functools.partial(op.upsample_nearest2d_backward, x, 32, 32, 0.0, 0.0)
        yield f"nails, {shown}", functools.partial(op.bed_of_nails2d, x, 2)


def fenced() -> None:
    for x, grad in upsample_inputs.fenced():
        op.upsample_nearest2d(x, *grad.shape[2:], 0.0, 0.0)
        op.upsample_nearest2d_backward(grad, *x.shape[2:], 0.0, 0.0)
        nails = op.bed_of_nails2d(x, 3)
        op.bed_of_nails2d_backward(nails, 3)
