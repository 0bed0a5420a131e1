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

from segops import _library, errors
from segops import triton as backend
from segops._dtypes import accumulation_dtype
from segops._layout import pixel_stride

INTERPRETING = backend.interpreting()

#: What Triton calls the dtypes that kernels compute in.
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


def computing_dtype(x: Tensor) -> tl.dtype:
    """What kernels compute in where they read elements of x."""
    return TRITON_DTYPE[accumulation_dtype(x)]


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


def contiguous(x: Tensor | None) -> Tensor | None:
    """What kernels read without strides; None where there is none."""
    return None if x is None else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """x [N, C, *spatial] as [N, C, S] with neighbouring pixels (planar) or classes (channels last); else of a copy.

    The stride of the pixels tells which it is: 1 is planar, and so is a single pixel.
    """
    stride = pixel_stride(x)
    if stride is None:
        x, stride = x.contiguous(), 1
    return x.as_strided((*x.shape[:2], math.prod(x.shape[2:])), (x.stride(0), x.stride(1), stride))


def report(record: Tensor, on_bad: int, describe: errors.Describe, kept: int | None = None) -> None:
    """Do what `on_bad` asks for with a record of bad data that kernels have made.

    Reading it would wait for a device: there it is left to the CUDA library, which keeps it as `kept` (default: as
    `on_bad` says).
    """
    if on_bad == errors.RECORD:
        return
    if record.is_cuda:
        if _library.cuda_unavailable is None:
            torch.ops.segops.note_bad_data(record, on_bad if kept is None else kept)
        return
    count, position, value = record.tolist()
    if on_bad == errors.COUNT:
        errors.count_bad_data(count)
    elif count:
        raise RuntimeError(describe(count, position, value))
