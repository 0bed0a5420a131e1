"""confusion_matrix: pixels counted by label and predicted class, from logits or from a label map."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from segops import backends, errors
from segops._dtypes import FLOATING, LABELS, dtype_name
from segops._layout import check_dense
from segops._library import define_op
from segops.reference import confusion_matrix as reference

OP = "confusion_matrix"
_INTEGER = (int, torch.SymInt)


def _fake(
    prediction: Tensor, target: Tensor, num_classes: int, has_ignore_index: bool, ignore_index: int, on_bad: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        target.new_empty((num_classes, num_classes), dtype=torch.int64),
        target.new_empty((3,), dtype=torch.int64),
        target.new_empty((0 if prediction.is_floating_point() else 3,), dtype=torch.int64),
    )


define_op(
    f"{OP}(Tensor prediction, Tensor target, SymInt num_classes, bool has_ignore_index, int ignore_index, int on_bad) "
    "-> (Tensor counts, Tensor bad_labels, Tensor bad_predictions)",
    _fake,
)


def confusion_matrix(
    prediction: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """How many pixels of each class, by the label they have (rows) and the class predicted for them (columns).

    From logits equal to ``bincount(target * C + logits.argmax(1), minlength=C * C).view(C, C)`` over the pixels that
    are not ignored: of equal logits the first class wins, and the first NaN wins over all numbers. The logits are read
    once, and there is no label map in memory. Counts are exact, whatever the number of threads.

    Not differentiable: the result never requires a gradient.

    Args:
        prediction: logits [N, C, *spatial] with at least one spatial dimension; float32, float64, bfloat16 or float16,
            contiguous or channels last (anything else is copied once). Or a label map of the target's shape: uint8,
            int16, int32 or int64.
        target: labels in [0, C) or `ignore_index`; [N, *spatial] for logits, of any shape for a label map; uint8,
            int16, int32 or int64.
        num_classes: C; needed for a label map.
        ignore_index: label of pixels that count nowhere; what is predicted for them may be anything.
        backend: see :mod:`segops.backends`.

    Returns:
        int64 [C, C].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number of classes; a label that is neither in [0, C) nor `ignore_index`,
            or a prediction outside [0, C) for a pixel that counts. On a CUDA device such data is reported by a later
            call or by :func:`segops.check_errors`, inside a compiled graph on a CPU as a RuntimeError.

    Examples:
        >>> segops.confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255]), 2, ignore_index=255)
        tensor([[1, 1],
                [0, 1]])
    """
    classes = _check(prediction, target, num_classes, ignore_index)
    errors.raise_arrived()
    chosen = backends.resolve(backend, target.device)
    if chosen == "reference":
        return _by_reference(prediction, target, classes, ignore_index)
    counts, bad_labels, bad_predictions = backends.run(
        chosen,
        "confusion_matrix",
        prediction.detach(),
        target,
        classes,
        ignore_index is not None,
        ignore_index or 0,
        errors.on_bad("raise", target),
    )
    errors.raise_bad_labels(OP, bad_labels, target, classes, ignore_index)
    if not prediction.is_floating_point():
        errors.raise_bad_labels(OP, bad_predictions, prediction, classes, None, "prediction")
    return counts


def _by_reference(prediction: Tensor, target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    predicted, label = reference.classes_of(prediction), target.long()
    ignored = torch.zeros_like(label, dtype=torch.bool) if ignore_index is None else label == ignore_index
    bad = ((label < 0) | (label >= classes)) & ~ignored
    bad_prediction = ((predicted < 0) | (predicted >= classes)) & ~ignored & ~bad
    describe = partial(errors.describe_bad_labels, OP, shape=list(label.shape), classes=classes)
    errors.report_found(bad, label, "raise", partial(describe, ignore_index=ignore_index, name="target"))
    errors.report_found(bad_prediction, predicted, "raise", partial(describe, ignore_index=None, name="prediction"))
    keep = ~(ignored | bad | bad_prediction)
    return reference.confusion_matrix(predicted, torch.where(keep, label, -1), classes, -1)


def _check(prediction: Any, target: Any, num_classes: Any, ignore_index: Any) -> int:
    """The number of classes."""
    for name, t in (("prediction", prediction), ("target", target)):
        check_dense(OP, name, t)
    if prediction.dtype not in (*FLOATING, *LABELS):
        raise TypeError(
            f"segops.{OP}: prediction must be logits (float32, float64, bfloat16 or float16) or a label map (uint8, "
            f"int16, int32 or int64), got {dtype_name(prediction.dtype)}"
        )
    if target.dtype not in LABELS:
        raise TypeError(f"segops.{OP}: target must be uint8, int16, int32 or int64, got {dtype_name(target.dtype)}")
    for name, value in (("num_classes", num_classes), ("ignore_index", ignore_index)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, _INTEGER)):
            raise TypeError(f"segops.{OP}: {name} must be an int or None, got {type(value).__name__}")
    if ignore_index is not None and not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"segops.{OP}: ignore_index must be an int of 64 bits, got {ignore_index}")
    shape = tuple(prediction.shape)
    if prediction.is_floating_point():
        if prediction.ndim < 3:
            raise ValueError(f"segops.{OP}: logits must be [N, C, *spatial], got {list(shape)}")
        if shape[1] < 1:
            raise ValueError(f"segops.{OP}: logits must have at least one class, got {list(shape)}")
        if num_classes is not None and num_classes != shape[1]:
            raise ValueError(f"segops.{OP}: num_classes must be {shape[1]} for logits {list(shape)}, got {num_classes}")
        num_classes, shape = shape[1], (shape[0], *shape[2:])
    elif num_classes is None:
        raise ValueError(f"segops.{OP}: num_classes must be given where prediction is a label map, got None")
    elif not 1 <= num_classes < 1 << 31:
        raise ValueError(f"segops.{OP}: num_classes must be at least 1 and below 2^31, got {num_classes}")
    if tuple(target.shape) != shape:
        raise ValueError(
            f"segops.{OP}: target must be {list(shape)} for prediction {list(prediction.shape)}, "
            f"got {list(target.shape)}"
        )
    if target.device != prediction.device:
        raise ValueError(f"segops.{OP}: target must be on {prediction.device} like prediction, got {target.device}")
    return num_classes
