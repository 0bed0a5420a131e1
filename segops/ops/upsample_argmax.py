"""upsample_argmax: the class of each pixel from coarse logits, without full-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segops import backends
from segops._dtypes import FLOATING, accumulation_dtype
from segops._layout import check_dense
from segops._library import define_op
from segops.ops.upsample_arguments import output_size
from segops.reference import upsample_argmax as reference

OP = "upsample_argmax"
#: How many classes labels of each dtype can tell apart.
_CLASSES = {torch.uint8: 1 << 8, torch.int16: 1 << 15, torch.int32: 1 << 31, torch.int64: 1 << 63}


def _fake(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype, with_score: bool
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], height, width)
    return logits.new_empty(shape, dtype=dtype), logits.new_empty(
        shape if with_score else (0,), dtype=accumulation_dtype(logits)
    )


define_op(
    f"{OP}(Tensor logits, SymInt height, SymInt width, bool align_corners, ScalarType dtype, bool with_score) "
    "-> (Tensor labels, Tensor score)",
    _fake,
)


def upsample_argmax(
    logits: Tensor,
    size: int | Sequence[int],
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
    return_score: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The class with the largest logit of each pixel, after bilinear interpolation to `size`.

    Equal to ``F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners).argmax(1)``, up or
    down, but full-resolution logits never exist. Of equal logits the smallest class wins, and the first NaN wins over
    all numbers. Where interpolated logits differ by no more than rounding, either may be the largest.

    Not differentiable: results never require a gradient.

    Args:
        logits: [N, C, h, w]; float32, float64, bfloat16 or float16, interpolated in float32 (float64 for float64);
            contiguous, channels last, or a slice of one of them (anything else is copied once). N may be 0.
        size: H and W of the result, or one number for both.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        dtype: of the labels: uint8, int16, int32 or int64.
        return_score: also return the softmax probability of each pixel's label.
        backend: see :mod:`segops.backends`.

    Returns:
        Labels [N, H, W]; with `return_score` (labels, score), score [N, H, W] in float32 (float64 for float64), NaN
        where the pixel's logits have a NaN.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, a size below 1, more classes than `dtype` can tell apart.

    Examples:
        >>> logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]])  # class 0 left, class 1 right
        >>> segops.upsample_argmax(logits, (1, 4))
        tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    """
    _check(logits, align_corners, dtype, return_score)
    height, width = output_size(OP, size)
    chosen = backends.resolve(backend, logits.device)
    if chosen == "reference":
        labels, score = reference.upsample_argmax(logits, height, width, align_corners, dtype)
    else:
        labels, score = backends.run(
            chosen, "upsample_argmax", logits.detach(), height, width, align_corners, dtype, return_score
        )
    return (labels, score) if return_score else labels


def _check(logits: Any, align_corners: Any, dtype: Any, return_score: Any) -> None:
    check_dense(OP, "logits", logits)
    if logits.dtype not in FLOATING:
        raise TypeError(f"segops.{OP}: logits must be float32, float64, bfloat16 or float16, got {logits.dtype}")
    if logits.ndim != 4 or 0 in logits.shape[1:]:
        raise ValueError(
            f"segops.{OP}: logits must be [N, C, h, w] with C, h and w at least 1, got {list(logits.shape)}"
        )
    for name, value in (("align_corners", align_corners), ("return_score", return_score)):
        if not isinstance(value, bool):
            raise TypeError(f"segops.{OP}: {name} must be a bool, got {value!r}")
    if not isinstance(dtype, torch.dtype) or dtype not in _CLASSES:
        raise TypeError(f"segops.{OP}: dtype must be torch.uint8, int16, int32 or int64, got {dtype!r}")
    if logits.shape[1] > _CLASSES[dtype]:
        raise ValueError(
            f"segops.{OP}: dtype {dtype} holds labels of at most {_CLASSES[dtype]} classes, got {logits.shape[1]}"
        )
