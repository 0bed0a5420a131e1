"""The timing core: every contender is checked, measured for memory, and then timed in laps, A B C ... A B C ...

A machine drifts by tens of percent within a minute, so a ratio is taken within a lap and its median over the laps is
quoted; nothing is ever divided by a time from another run.
"""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from tests.tolerances import assert_near

DIRECTIONS = ("forward", "forward_backward")
MAX_LAPS = 200
#: A sample lasts at least this long: a contender faster than that is called several times per sample.
SAMPLE_SECONDS = 5e-3
#: Copied for the bandwidth in every lap, by device; larger than any last-level cache in sight.
COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
#: Written on a device before every call, so that the call before leaves nothing in the second-level cache.
FLUSH_BYTES = 256 << 20
#: Below this traffic a case may live in a cache, and a fraction of the memory bandwidth means nothing.
MIN_STREAM_BYTES = 32 << 20


@dataclass(frozen=True)
class Case:
    """One input of one operator; its string names it in every table."""

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.dtype_name}-{self.layout}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Contender:
    """A way to compute the operator.

    Attributes:
        name: column of the tables.
        function: called with the inputs of the case; returns one tensor.
        layout: "contiguous" or "channels_last", for its inputs, if not that of the case.
        compiled: wrap it in torch.compile, for the very shape. Compiling and changing the layout are not timed.
        group: what a goal is stated against, by default the name; the best of a group counts.
        reference: what it computes, if not exactly what the operator does.
    """

    name: str
    function: Callable[..., Tensor]
    layout: str | None = None
    compiled: bool = False
    group: str | None = None
    reference: Callable[..., Tensor] | None = None

    def load(self) -> Callable[..., Tensor]:
        return torch.compile(self.function, dynamic=False) if self.compiled else self.function


@dataclass(frozen=True)
class Peer(Contender):
    """A contender from another package. It may be missing or fail to compile, which is recorded instead of a time.

    `function` returns the function to call, so that the package is imported when its turn comes.
    """

    def load(self) -> Callable[..., Tensor]:
        function = self.function()
        return torch.compile(function, dynamic=False) if self.compiled else function


@dataclass(frozen=True)
class Effort:
    """How long to time: at least `laps` laps, more while `seconds` last; only contenders whose name matches `only`."""

    laps: int
    seconds: float
    only: str = ""


class ReplayClock:
    """A clock for pytest-benchmark that replays durations: interleaved samples get its statistics and its JSON."""

    def __init__(self) -> None:
        self._ticks: Iterator[float] = iter(())

    def __call__(self) -> float:
        return next(self._ticks)

    def __repr__(self) -> str:
        return "interleaved laps of time.perf_counter"

    def replay(self, benchmark: Any, durations: Sequence[float]) -> None:
        self._ticks = chain.from_iterable((0.0, duration) for duration in durations)
        benchmark.pedantic(lambda: None, rounds=len(durations))


replay_clock = ReplayClock()


def race(
    benchmark: Any,
    effort: Effort,
    case: Case,
    direction: str,
    inputs: Sequence[Tensor],
    contenders: Sequence[Contender],
    *,
    reference: Callable[..., Tensor],
    own: Callable[..., Tensor],
    regime: str,
    floor_bytes: int = 0,
    moved_bytes: int = 0,
    products: int = 0,
    goals: Mapping[str, float] | None = None,
    memory_goal: int | None = None,
    memory_goals: Mapping[str, float] | None = None,
    network: bool = False,
) -> None:
    """Check, weigh and time the contenders, the first of which is segops, and record all that with pytest-benchmark.

    Args:
        benchmark: pytest-benchmark's fixture, running on `replay_clock`.
        effort: how long to time, and whom.
        case, direction: what is measured; the direction is one of `DIRECTIONS`.
        inputs: of the case. With "forward_backward", the floating-point ones get gradients.
        contenders: segops first.
        reference: the truth when called with float64 inputs.
        own: PyTorch's own way; its error in the dtype of the case is the yardstick for that of segops.
        regime: of the allocator, for the name of the benchmark.
        floor_bytes: what any implementation has to read and write; 0 where memory is not what the time goes to.
        moved_bytes: what segops reads and writes by its algorithm.
        products: multiply-adds by the definition, of an operator that is bound by them.
        goals: by group of contenders, the ratio to reach.
        memory_goal: bytes beyond the inputs.
        memory_goals: by group of contenders, the share of their least peak to stay below.
        network: a whole network, whose peaks are told in either direction and in bytes.
    """
    benchmark.name = f"{case.op}-{case}-{direction}-{regime}"
    benchmark.group = case.op
    chosen = [contenders[0], *(c for c in contenders[1:] if re.search(effort.only, c.name))]
    trains = network and direction == "forward_backward"
    near = near_in_norm if trains else partial(near_everywhere, inputs=case.dtype)
    calls, records = _check(case, direction, inputs, chosen, reference, own, near)
    if benchmark.disabled:
        benchmark.pedantic(lambda: None)
        return
    device = inputs[0].device.type
    for name, call in calls.items():
        records[name] |= {
            "peak_bytes": memory.peak_allocated(call, device),
            "peak_resident_bytes": memory.peak_resident(call) if device == "cpu" else None,
        }
    streams = floor_bytes >= MIN_STREAM_BYTES
    samples = laps(calls | ({"copy": _copy(device)} if streams else {}), effort, device)
    segops = contenders[0].name
    for name in calls:
        records[name] |= _summary(samples[name], samples[segops])
    bandwidth = 2 * COPY_BYTES[device] / statistics.median(samples["copy"]) if streams else None
    benchmark.extra_info.update(
        op=case.op,
        shape=list(case.shape),
        dtype=case.dtype_name,
        layout=case.layout,
        direction=direction,
        regime=regime,
        threads=torch.get_num_threads(),
        contenders=records,
        goals=dict(goals or {}),
        floor_bytes=floor_bytes,
        moved_bytes=moved_bytes,
        products=products,
        copy_bandwidth=bandwidth,
        floor_fraction=floor_bytes / records[segops]["median"] / bandwidth if bandwidth else None,
        gradient_bytes=sum(t.nbytes for t in inputs if t.is_floating_point()),
        memory_goal_bytes=memory_goal,
        memory_goals=dict(memory_goals or {}),
        network=network,
    )
    replay_clock.replay(benchmark, samples[segops])


def laps(calls: Mapping[str, Callable[[], object]], effort: Effort, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds per call, by name, one sample of each in every lap."""
    seconds_of = _timer(device)
    repeats = {name: _repeats(call, seconds_of) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        begun, lap = time.perf_counter(), 0
        while lap < effort.laps or (lap < MAX_LAPS and time.perf_counter() - begun < effort.seconds):
            for name, call in calls.items():
                if repeats[name] > 1 and device == "cpu":
                    # What is this fast would feel the caches, and the spinning threads, that the one before it left.
                    call()
                samples[name].append(seconds_of(call, repeats[name]))
            lap += 1
    finally:
        if collecting:
            gc.enable()
    return samples


def bind(function: Callable[..., Tensor], inputs: Iterable[Tensor], direction: str) -> Callable[[], tuple[Tensor, ...]]:
    """A call without arguments that returns the output, and behind it the gradients of the floating-point inputs.

    Gradients are returned, not accumulated: into a leaf of another layout, PyTorch would copy them.
    """
    if direction == "forward":
        arguments = [t.detach() for t in inputs]

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(*arguments),)

        return forward

    arguments = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    leaves = [t for t in arguments if t.requires_grad]
    upstream: Tensor | None = None

    def forward_backward() -> tuple[Tensor, ...]:
        nonlocal upstream
        output = function(*arguments)
        if output.ndim and upstream is None:
            # Multiples of 1/8 are the same numbers in every dtype: contenders and truth get one upstream gradient.
            eighths = torch.randint(-8, 9, output.shape, generator=torch.Generator().manual_seed(2))
            upstream = (eighths / 8).to(output)
        return (output, *torch.autograd.grad(output, leaves, upstream))

    return forward_backward


def _check(
    case: Case,
    direction: str,
    inputs: Sequence[Tensor],
    contenders: Sequence[Contender],
    reference: Callable[..., Tensor],
    own: Callable[..., Tensor],
    near: Callable[[Tensor, Tensor, str], None],
) -> tuple[dict[str, Callable[[], object]], dict[str, dict[str, Any]]]:
    """Calls of the contenders whose results are right, and the beginning of everybody's record.

    segops is held to the rule of tests/tolerances.py. For the others `near` is enough to tell that they compute what
    they should. One wrong result fails the benchmark, before anything is timed.
    """

    def evaluate(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        return _detached(bind(function, [t.to(dtype) if t.is_floating_point() else t for t in inputs], direction))

    truths = {reference: evaluate(reference, torch.float64)}
    if any(c.compiled for c in contenders):
        # Graphs of earlier cases count towards the limit beyond which torch.compile silently runs eagerly.
        torch.compiler.reset()
    calls: dict[str, Callable[[], object]] = {}
    records: dict[str, dict[str, Any]] = {}
    for position, contender in enumerate(contenders):
        records[contender.name] = {"group": contender.group or contender.name}
        try:
            call = bind(contender.load(), [_in_layout(t, contender.layout or case.layout) for t in inputs], direction)
            outputs = _detached(call)
        except Exception as error:
            if not isinstance(contender, Peer):
                raise
            records[contender.name]["unavailable"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        what = f"{case.op} {case} {direction}: {contender.name}"
        if position == 0:
            owns = evaluate(own, case.dtype)
            in_float = evaluate(own, torch.float32) if case.dtype.itemsize == 2 else (None,) * len(owns)
            for numbers in zip(outputs, truths[reference], owns, in_float, strict=True):
                if numbers[0].is_floating_point():
                    assert_near(*numbers, what=what)
                else:
                    _assert_labels(numbers[0], numbers[1], what)
        else:
            expected = contender.reference or reference
            if expected not in truths:
                truths[expected] = evaluate(expected, torch.float64)
            for output, truth in zip(outputs, truths[expected], strict=True):
                if not truth.is_floating_point():
                    _assert_labels(output, truth, what, 1 - 0.1 * (case.dtype.itemsize == 2))
                    continue
                near(output, truth, what)
        calls[contender.name] = call
    return calls, records


def near_everywhere(output: Tensor, truth: Tensor, what: str, inputs: torch.dtype) -> None:
    """Half of the digits of the largest element; those that the inputs have, as losses of 16 bits may come in 32."""
    error, scale = (float(t.abs().max()) for t in (output - truth, truth))
    limit = scale * torch.finfo(inputs if inputs.is_floating_point else output.dtype).eps ** 0.5
    assert error <= limit, f"{what} is off by {error:.3e} where {limit:.3e} is allowed"


def near_in_norm(output: Tensor, truth: Tensor, what: str) -> None:
    """The gradient of a network: the sign of a rounding decides over single ReLUs and winners of poolings."""
    error, scale = (float(t.norm()) for t in (output - truth, truth))
    assert error <= 0.2 * scale, f"{what} is off by {error / scale:.1%} in norm where 20% are allowed"


def _assert_labels(labels: Tensor, truth: Tensor, what: str, share: float = 1.0) -> None:
    """All but one in a thousand: where two classes are equal but for rounding, either label is right.

    `share` of that where logits are interpolated in 16 bits, so that many are equal.
    """
    agree = float((labels.to(truth.dtype) == truth).double().mean())
    assert agree >= 0.999 * share, f"{what}: {agree:.2%} of the labels are those of the reference"


def _detached(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in call())


def _in_layout(t: Tensor, layout: str) -> Tensor:
    if not t.is_floating_point() or t.ndim < 3:
        return t
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else t.contiguous()


def _copy(device: str) -> Callable[[], object]:
    source = torch.zeros(COPY_BYTES[device] // 4, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def _repeats(call: Callable[[], object], seconds_of: Callable[[Callable[[], object], int], float]) -> int:
    """Calls per sample. The first call warms up; of the next, the shortest counts if they are short enough to vary."""
    call()
    seconds = seconds_of(call, 1)
    if seconds < 10 * SAMPLE_SECONDS:
        seconds = min(seconds, *(seconds_of(call, 1) for _ in range(5)))
    return max(1, math.ceil(SAMPLE_SECONDS / seconds))


def _timer(device: str) -> Callable[[Callable[[], object], int], float]:
    if device == "cpu":
        return _seconds
    return partial(_device_seconds, torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device))


def _device_seconds(flush: Tensor, call: Callable[[], object], repeats: int) -> float:
    """By the device's own events, so without what the host does while the device writes to `flush`."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begun, ended in pairs:
        flush.zero_()
        begun.record()
        call()
        ended.record()
    torch.cuda.synchronize()
    return sum(begun.elapsed_time(ended) for begun, ended in pairs) / repeats / 1e3


def _seconds(call: Callable[[], object], repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begun) / repeats


def _summary(samples: Sequence[float], segops: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(samples),
        "minimum": min(samples),
        "laps": len(samples),
        "ratio": statistics.median(mine / ours for mine, ours in zip(samples, segops, strict=True)),
    }
