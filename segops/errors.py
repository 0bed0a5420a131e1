"""Bad data: labels and indices that are out of range.

An op never trusts them and never stops a device for them. It returns a record of what it found beside its result,
``int64 [3] = (how many, flat position of the first, its value)``, and this module turns records into errors.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor

from segops import _library

#: The argument ``on_bad`` of operators: leave bad data at the record, count it, or raise inside the operator.
RECORD, COUNT, RAISE = 0, 1, 2
VALIDATE = ("raise", "count", "off")

_counted_without_library = 0


def on_bad(validate: str) -> int:
    """How an operator is to treat bad data: inside a graph nobody reads its record, so there it raises by itself."""
    if validate == "count":
        return COUNT
    return RAISE if validate == "raise" and not _record_is_read(None) else RECORD


def _record_is_read(record: torch.Tensor | None) -> bool:
    """Whether this call reads its record: not inside a graph or a transform of torch.func, and not a fake one."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return record is None or (record.device.type == "cpu" and not isinstance(record, FakeTensor))


def raise_bad_labels(op: str, record: torch.Tensor, target: torch.Tensor, classes: int, ignore_index: int) -> None:
    """Raise ValueError if the record of an eager CPU call tells of bad labels."""
    if not _record_is_read(record):
        return
    count, position, value = record.tolist()
    if count:
        raise ValueError(describe_bad_labels(op, count, position, value, list(target.shape), classes, ignore_index))


def describe_bad_labels(
    op: str, count: int, position: int, value: int, shape: list[int], classes: int, ignore_index: int
) -> str:
    if _library.native is None:
        return f"segops.{op}: target has {count} label(s) outside [0, {classes}); the first is {value}"
    return _library.native.describe_bad_labels(op, count, position, value, shape, classes, ignore_index)


def count_bad_data(elements: int) -> None:
    global _counted_without_library
    if _library.native is None:
        _counted_without_library += elements
    else:
        _library.native.count_bad_data(elements)


def take_bad_data_count() -> int:
    """Bad labels and indices seen by ops with ``validate="count"`` in this process since the last call."""
    global _counted_without_library
    if _library.native is None:
        count, _counted_without_library = _counted_without_library, 0
        return count
    return _library.native.take_bad_data_count()
