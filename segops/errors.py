"""Bad data: labels and indices that are out of range.

An op never trusts them and never stops a device for them. It returns a record of what it found beside its result,
``int64 [3] = (how many, flat position of the first, its value)``, and this module turns records into errors: at once
for CPU tensors. For CUDA tensors nothing waits: the record is copied to the host meanwhile, and the next call of an op
that finds it there raises, or :func:`check_errors`, which does wait. Inside compiled and captured graphs nobody reads
a record: there a CPU op raises by itself, and the device adds up what it has seen for :func:`check_errors`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from segops import _library

#: The argument ``on_bad`` of operators: leave bad data at the record, count it, or raise inside the operator (a device
#: keeps it instead).
RECORD, COUNT, RAISE = 0, 1, 2
#: What a device keeps of RAISE for soft labels: their values are bits of doubles.
RAISE_SOFT = 3
VALIDATE = ("raise", "count", "off")

_counted_without_library = 0

# Only where kernels of csrc/cuda run; the CPU kernels count in the process. Add a record to what its device has seen,
# and take that as a record: one of what was counted (on_bad COUNT), two of what is to be raised (RAISE, RAISE_SOFT).
_library.define_op("note_bad_data(Tensor record, int on_bad) -> ()", lambda record, on_bad: None)
_library.define_op(
    "take_bad_data(Tensor like, int on_bad) -> Tensor", lambda like, on_bad: like.new_empty(3, dtype=torch.int64)
)


#: What a record (count, position, value) tells: the text of an error.
Describe = Callable[[int, int, int], str]


class _Pending(NamedTuple):
    """A record on its way from a device."""

    arrived: Any  # an event
    record: Tensor  # pinned
    describe: Describe


_pending: list[_Pending] = []
_pending_lock = threading.Lock()


def on_bad(validate: str, like: Tensor) -> int:
    """How an operator on the device of `like` is to treat bad data."""
    if validate == "count":
        return COUNT
    return RAISE if validate == "raise" and _in_a_graph(like) else RECORD


def _in_a_graph(like: Tensor) -> bool:
    """Whether nobody will read this call's record: in a graph, or in a transform of torch.func."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return like.is_cuda and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def raise_bad_labels(
    op: str, record: Tensor, target: Tensor, classes: int, ignore_index: int | None, name: str = "target"
) -> None:
    """Raise ValueError if the record of an eager call tells of bad labels; on a device, as soon as it can be known."""
    _raise_bad(
        record,
        partial(
            describe_bad_labels, op, shape=list(target.shape), classes=classes, ignore_index=ignore_index, name=name
        ),
    )


def raise_bad_probabilities(
    op: str, record: Tensor, target: Tensor, ignore_index: int | None, name: str = "target"
) -> None:
    """The same for labels of two classes: 0 and 1, or of floating point between them."""
    soft = target.is_floating_point()
    _raise_bad(
        record,
        partial(
            describe_bad_probabilities, op, shape=list(target.shape), soft=soft, ignore_index=ignore_index, name=name
        ),
    )


def raise_bad_indices(
    op: str, record: Tensor, indices: Tensor, size: Sequence[int], kernel: Sequence[int] = (0, 0)
) -> None:
    """The same for indices into an output of `size`: of windows of `kernel`, or flat ones without it."""
    _raise_bad(record, partial(describe_bad_indices, op, shape=list(indices.shape), size=size, kernel=kernel))


def _raise_bad(record: Tensor, describe: Describe) -> None:
    if _in_a_graph(record) or isinstance(record, FakeTensor) or record.is_meta:
        return
    if record.is_cuda:
        host = torch.empty(3, dtype=torch.int64, device="cpu", pin_memory=True)
        host.copy_(record, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(record.device))
        with _pending_lock:
            _pending.append(_Pending(arrived, host, describe))
        return
    _raise(record, describe)


def report_found(bad: Tensor, labels: Tensor, validate: str, describe: Describe) -> None:
    """Count or raise, as `validate` says, what a reference has found: the labels where they are `bad`.

    Not inside a compiled graph. A label of floating point is told by the bits of a double.
    """
    if validate == "off" or torch.compiler.is_compiling():
        return
    count = int(bad.sum())
    if count and validate == "count":
        count_bad_data(count)
    elif count:
        position = int(bad.flatten().int().argmax())
        first = labels.flatten()[position]
        value = first.double().resolve_neg().view(torch.int64) if first.is_floating_point() else first
        raise ValueError(describe(count, position, int(value)))


def raise_arrived() -> None:
    """Raise ValueError for bad data of an earlier call on a device, if its record has come. Never waits."""
    # Not where a graph is made: compilation would depend on what is pending, and a capture must not query events.
    # A dispatch mode would see the record as a tensor of its own.
    if torch.compiler.is_compiling() or not _pending or _get_current_dispatch_mode() is not None:
        return
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return
    while (arrived := _take_arrived()) is not None:
        _raise(arrived.record, arrived.describe)


def _take_arrived() -> _Pending | None:
    """The earliest call whose record has arrived; streams and devices do not wait for each other."""
    with _pending_lock:
        for i, pending in enumerate(_pending):
            if pending.arrived.query():
                return _pending.pop(i)
    return None


def _raise(record: Tensor, describe: Describe) -> None:
    count, position, value = record.tolist()
    if count:
        raise ValueError(describe(count, position, value))


def check_errors(device: torch.device | str | int | None = None) -> None:
    """Wait for a CUDA device and raise for the bad labels and indices that its ops have met and nobody was told of yet.

    What ops inside graphs have met is kept by the CUDA library: where that is not built, the Triton kernels ignore bad
    labels there in silence.

    Args:
        device: a CUDA device; the current one by default. Ops on CPU tensors have raised already.

    Raises:
        ValueError: there were some, in an earlier eager call, or inside a compiled or captured graph.
    """
    if not torch.cuda.is_available():
        return
    device = torch.device("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)
    if device.type != "cuda":
        return
    torch.cuda.synchronize(device)
    raise_arrived()
    if _library.cuda_unavailable is not None:
        return
    found = []
    for kind in (RAISE, RAISE_SOFT):
        count, position, value = _take("segops", device, kind)
        if count:
            what, first = ("label(s) or indices", value) if kind == RAISE else ("soft label(s)", _double_of_bits(value))
            words = f"{count} {what} out of range inside a graph on {device}; the first is {first}"
            found.append(f"{words} at flat position {position}")
    if found:
        raise ValueError(f"segops: {'; '.join(found)}")


def _take(namespace: str, device: torch.device, kind: int) -> list[int]:
    return getattr(torch.ops, namespace).take_bad_data(torch.empty(0, device=device), kind).tolist()


def describe_bad_labels(
    op: str,
    count: int,
    position: int,
    value: int,
    shape: list[int],
    classes: int,
    ignore_index: int | None,
    name: str = "target",
) -> str:
    if _library.native is None:
        return f"segops.{op}: {name} has {count} label(s) outside [0, {classes}); the first is {value}"
    return _library.native.describe_bad_labels(op, count, position, value, shape, classes, ignore_index, name)


def describe_bad_probabilities(
    op: str,
    count: int,
    position: int,
    value: int,
    shape: list[int],
    soft: bool,
    ignore_index: int | None,
    name: str = "target",
) -> str:
    """`value` of a soft label is the bits of a double."""
    if _library.native is None:
        first = _double_of_bits(value) if soft else value
        return f"segops.{op}: {name} has {count} label(s) outside [0, 1]; the first is {first}"
    return _library.native.describe_bad_probabilities(op, count, position, value, shape, soft, ignore_index, name)


def _double_of_bits(bits: int) -> float:
    return struct.unpack("d", struct.pack("q", bits))[0]


def describe_bad_indices(
    op: str,
    count: int,
    position: int,
    value: int,
    shape: list[int],
    size: Sequence[int],
    kernel: Sequence[int] = (0, 0),
) -> str:
    if _library.native is None:
        return f"segops.{op}: {count} index(es) outside the output of {size[0]} x {size[1]}; the first is {value}"
    return _library.native.describe_bad_indices(op, count, position, value, shape, *size, *kernel)


def count_bad_data(elements: int) -> None:
    global _counted_without_library
    if _library.native is None:
        _counted_without_library += elements
    else:
        _library.native.count_bad_data(elements)


def take_bad_data_count() -> int:
    """Bad labels and indices seen by ops with ``validate="count"`` in this process since the last call.

    Waits for the CUDA devices that the process has used.
    """
    global _counted_without_library
    count, _counted_without_library = _counted_without_library, 0
    if _library.native is not None:
        count += _library.native.take_bad_data_count()
    if _library.simt_unavailable is None:
        count += _take("segops_simt", torch.device("cpu"), COUNT)[0]
    if _library.cuda_unavailable is None and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            if torch._C._cuda_hasPrimaryContext(index):  # type: ignore[attr-defined]
                torch.cuda.synchronize(index)
                count += _take("segops", torch.device("cuda", index), COUNT)[0]
    return count
