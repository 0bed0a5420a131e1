"""Calls of upsample_bilinear's Triton operators: what is compiled for its machine code, what runs between fences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from segops.triton import upsample_bilinear as op
from tests.triton import upsample_inputs

#: Arguments of kernels: told of one more, they leave their tensors.
PLANTED = ("height", "channels")


def compiled() -> Iterator[tuple[str, Callable[[], object]]]:
    images = zip(upsample_inputs.compiled(), upsample_inputs.compiled(128), strict=True)
    for (shown, x), (_, skip) in images:
        yield shown, functools.partial(op.upsample_cat, x, skip, False, True)
        yield f"backward, {shown}", functools.partial(op.upsample_bilinear2d_backward, x, 32, 32, False, 0.0, 0.0)


def fenced() -> None:
    for turn, (x, grad) in enumerate(upsample_inputs.fenced()):
        align_corners = turn % 2 == 1
        op.upsample_bilinear2d(x, *grad.shape[2:], align_corners, 0.0, 0.0)
        op.upsample_bilinear2d_backward(grad, *x.shape[2:], align_corners, 0.0, 0.0)
        op.upsample_cat(x, grad, False, align_corners)
