"""segops' operators against PyTorch on this machine: each result is checked, then timed in turn with the others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

import segops
from segops.reference.dice_ce_loss import as_users_write_it, leanest_eager

Operator = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Entry:
    """One comparison of the table.

    Attributes:
        operator: its name.
        what: what of it is computed, "forward" for instance.
        inputs: makes the arguments, from a generator.
        segops: the operator.
        pytorch: by name, what PyTorch offers instead.
        reference: the truth when called with float64 arguments.
        judged: what of the results is compared, from the results and float64 arguments; by default the results.
    """

    operator: str
    what: str
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    segops: Operator
    pytorch: Mapping[str, Operator]
    reference: Operator
    judged: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda results, inputs: results


@dataclass(frozen=True)
class Measurement:
    """What was found for one implementation: largest error relative to the largest element of the truth, seconds."""

    error: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """An entry measured: segops, PyTorch's ways by name, and the error allowed for segops."""

    operator: str
    what: str
    shape: tuple[int, ...]
    segops: Measurement
    pytorch: Mapping[str, Measurement]
    limit: float

    @property
    def correct(self) -> bool:
        return self.segops.error <= self.limit  # False for NaN


def _forward(function: Callable[..., Any]) -> Operator:
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(*inputs),)

    return forward


def _forward_backward(function: Callable[..., Any]) -> Operator:
    """Value and gradient with respect to the first input, of a function that returns one number."""

    def forward_backward(first: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        first = first.detach().requires_grad_()
        value = function(first, *rest)
        return (value.detach(), *torch.autograd.grad(value, first))

    return forward_backward


def _logits_and_labels(generator: torch.Generator) -> tuple[Tensor, ...]:
    """Logits [2, 19, 256, 256], and labels [2, 256, 256] that are constant over regions, as those of images are."""
    logits = torch.randn(2, 19, 256, 256, generator=generator)
    regions = torch.randint(0, 19, (2, 16, 16), generator=generator)
    return logits, regions.repeat_interleave(16, 1).repeat_interleave(16, 2)


def _dice_ce_loss(what: str, direction: Callable[[Callable[..., Any]], Operator]) -> Entry:
    return Entry(
        operator="dice_ce_loss",
        what=what,
        inputs=_logits_and_labels,
        segops=direction(segops.dice_ce_loss),
        pytorch={
            "eager, one-hot": direction(as_users_write_it),
            "eager, leanest (gather)": direction(leanest_eager),
        },
        reference=direction(partial(segops.dice_ce_loss, backend="reference")),
    )


def _upsampled(logits: Tensor) -> Tensor:
    return F.interpolate(logits, (256, 256), mode="bilinear")


def _coarse_logits_and_labels(generator: torch.Generator) -> tuple[Tensor, ...]:
    """Logits [2, 19, 64, 64] and labels [2, 256, 256]."""
    logits, labels = _logits_and_labels(generator)
    return logits[:, :, ::4, ::4].contiguous(), labels


def _coarse_dice_ce_loss() -> Entry:
    return Entry(
        operator="dice_ce_loss, coarse",
        what="forward + backward",
        inputs=_coarse_logits_and_labels,
        segops=_forward_backward(segops.dice_ce_loss),
        pytorch={
            "eager, one-hot": _forward_backward(lambda x, target: as_users_write_it(_upsampled(x), target)),
            "eager, leanest (gather)": _forward_backward(lambda x, target: leanest_eager(_upsampled(x), target)),
        },
        reference=_forward_backward(partial(segops.dice_ce_loss, backend="reference")),
    )


def _upsample_cat() -> Entry:
    def eager(x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="bilinear")], 1)

    return Entry(
        operator="upsample_cat",
        what="forward",
        inputs=lambda generator: (
            torch.randn(2, 64, 64, 64, generator=generator),
            torch.randn(2, 32, 128, 128, generator=generator),
        ),
        segops=_forward(segops.upsample_cat),
        pytorch={"eager": _forward(eager)},
        reference=_forward(partial(segops.upsample_cat, backend="reference")),
    )


def _upsample_argmax() -> Entry:
    size = (512, 512)

    def eager(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear").argmax(1)

    def channels_last(logits: Tensor) -> Tensor:
        return eager(logits.contiguous(memory_format=torch.channels_last))

    def logit_of_label(results: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Of two classes with the same logit but for rounding, either is right."""
        full = F.interpolate(inputs[0], size, mode="bilinear")
        return (full.gather(1, results[0].long()[:, None]),)

    return Entry(
        operator="upsample_argmax",
        what="forward",
        inputs=lambda generator: (torch.randn(2, 19, 64, 64, generator=generator),),
        segops=_forward(partial(segops.upsample_argmax, size=size)),
        pytorch={"eager": _forward(eager), "eager, channels_last": _forward(channels_last)},
        reference=_forward(partial(segops.upsample_argmax, size=size, backend="reference")),
        judged=logit_of_label,
    )


def _pool_and_unpool() -> Entry:
    def ours(x: Tensor, **options: Any) -> Tensor:
        return segops.max_unpool2d(*segops.max_pool2d(x, 2, **options), 2, **options)

    def eager(x: Tensor) -> Tensor:
        output, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(output, indices, [2, 2])

    return Entry(
        operator="max_unpool2d",
        what="of max_pool2d",
        inputs=lambda generator: (torch.randn(2, 64, 128, 128, generator=generator),),
        segops=_forward(ours),
        pytorch={
            "eager": _forward(eager),
            "eager, channels_last": _forward(lambda x: eager(x.contiguous(memory_format=torch.channels_last))),
        },
        reference=_forward(partial(ours, backend="reference")),
    )


def _confusion_matrix() -> Entry:
    def eager(logits: Tensor, target: Tensor) -> Tensor:
        classes = logits.shape[1]
        return (target * classes + logits.argmax(1)).flatten().bincount(minlength=classes**2).view(classes, classes)

    return Entry(
        operator="confusion_matrix",
        what="of logits",
        inputs=_logits_and_labels,
        segops=_forward(segops.confusion_matrix),
        pytorch={"eager, bincount": _forward(eager)},
        reference=_forward(partial(segops.confusion_matrix, backend="reference")),
    )


ENTRIES: tuple[Entry, ...] = (
    _dice_ce_loss("forward", _forward),
    _dice_ce_loss("forward + backward", _forward_backward),
    _coarse_dice_ce_loss(),
    _upsample_cat(),
    _upsample_argmax(),
    _pool_and_unpool(),
    _confusion_matrix(),
)
"""What `segops demo` shows; a new operator adds its entry here."""


def compare(entry: Entry, rounds: int, seed: int = 0) -> Comparison:
    """Check and time one entry.

    The error allowed is twice that of PyTorch's best way, plus four units in the last place of the largest element,
    since PyTorch may be exact by luck. Times are medians over `rounds`, in each of which every way has its turn: a
    machine that slows down meanwhile slows all of them down.
    """
    inputs = entry.inputs(torch.Generator().manual_seed(seed))
    exact = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    truth = entry.judged(entry.reference(*exact), exact)
    ways = {"segops": entry.segops, **entry.pytorch}
    errors = {name: _error(entry.judged(way(*inputs), exact), truth) for name, way in ways.items()}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(*inputs)
            samples[name].append(time.perf_counter() - begin)
    measured = {name: Measurement(errors[name], statistics.median(samples[name])) for name in ways}
    own = measured.pop("segops")
    limit = 2 * min(m.error for m in measured.values()) + 4 * torch.finfo(inputs[0].dtype).eps
    return Comparison(entry.operator, entry.what, tuple(inputs[0].shape), own, measured, limit)


def _error(actual: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    errors = [(a.double() - t).abs().max() / t.abs().max() for a, t in zip(actual, truth, strict=True)]
    return float(torch.stack(errors).max())


def render(comparisons: Sequence[Comparison]) -> Table:
    """The table. No time is shown for a wrong result."""
    table = Table(
        title="segops on this machine against PyTorch",
        caption=f"float32, {torch.get_num_threads()} threads, median times. "
        "Error: the largest difference from float64, over the largest element.",
        show_lines=True,
    )
    table.add_column("operator", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("speed-up", justify="right", no_wrap=True)
    for c in comparisons:
        table.add_row(
            f"{c.operator}\n{c.what}\n{'x'.join(map(str, c.shape))}",
            "\n".join(["segops", *c.pytorch]),
            "\n".join(f"{m.error:.1e}" for m in (c.segops, *c.pytorch.values())),
            "\n".join(
                [f"{c.segops.seconds * 1e3:.2f}" if c.correct else "-"]
                + [f"{m.seconds * 1e3:.2f}" for m in c.pytorch.values()]
            ),
            "\n".join(["", *(f"{m.seconds / c.segops.seconds:.1f}x" for m in c.pytorch.values())])
            if c.correct
            else f"WRONG\nallowed: {c.limit:.1e}",
        )
    return table
