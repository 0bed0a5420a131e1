"""What every Triton operator needs on the host: how to launch a kernel, and whether it is interpreted."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from segops import triton as backend
from segops._layout import pixel_stride

INTERPRETING = backend.interpreting()

#: What Triton calls the dtypes that kernels compute in.
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


def launch(kernel: Any, programs: int, like: Tensor, *args: Any, **options: Any) -> None:
    """Run `programs` programs of a kernel on the device, and in the current stream, of `like`."""
    if programs == 0:
        return
    with torch.cuda.device(like.device) if like.is_cuda else _quiet_numpy():
        kernel[(programs,)](*args, **options)


@contextlib.contextmanager
def _quiet_numpy() -> Iterator[None]:
    """NaN and infinity are values like any other on a device; the interpreter's NumPy warns of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def as_rows(x: Tensor) -> Tensor:
    """x [N, C, *spatial] as [N, C, S] with neighbouring pixels (planar) or classes (channels last); else of a copy.

    The stride of the pixels tells which it is: 1 is planar, and so is a single pixel.
    """
    stride = pixel_stride(x)
    if stride is None:
        x, stride = x.contiguous(), 1
    return x.as_strided((*x.shape[:2], math.prod(x.shape[2:])), (x.stride(0), x.stride(1), stride))
