"""What a call of tests.faults.draw must do: give what the reference gives, or a clear error."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from tests.faults.draw import Call

#: Relative to the element and to the largest element, of value and gradient; sums of a few thousand terms.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
#: Rounding in float32 of "fast" convolutions (tests/tolerances.py is the sharper rule).
FAST = 2e-3
#: How torch says that it has no memory, or no tensor of such a size.
NO_MEMORY = ("memory", "overflow", "Storage size", "too large", "too big")


#: Whose result is made of elements of the argument, bit for bit.
MOVES = ("bed_of_nails2d", "max_pool2d", "max_unpool2d", "upsample_nearest2d")


class Wrong(AssertionError):
    """What the call did is no answer."""


Answer = Exception | list[Tensor]


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for one in value for tensor in flat(one)]
    return []


def answer(call: Call, backend: str | None, gradients: bool, wide: bool = False) -> Answer:
    """The tensors that the call returns and, behind them, the gradients of floating-point arguments; or its error.

    With `wide` every floating-point argument is float64.
    """
    leaves: list[Tensor] = []

    def prepared(key: str, value: Any) -> Any:
        if isinstance(value, list) and value and all(isinstance(one, Tensor) for one in value):
            return [prepared(key, one) for one in value]
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            return value
        value = value.detach() if key == call.broken else (value.double() if wide else value.detach())
        differentiable = key in ("input", "logits", "skip", "weight", "bias", "scale", "shift", "residual", "slope")
        if gradients and differentiable and not (key == "weight" and "loss" in call.name) and key != call.broken:
            leaves.append(value.requires_grad_())
        return value

    arguments = {key: prepared(key, value) for key, value in call.arguments.items()}
    if call.has_reference:
        arguments["backend"] = backend
    try:
        results = flat(getattr(segops, call.name)(**arguments))
        differentiable = [result for result in results if result.requires_grad]
        if call.name == "upsample_argmax" or _has_kink(call):
            return [result.detach() for result in results]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(result.shape, generator=generator).to(result.dtype) for result in differentiable]
        found: Any = [None] * len(leaves)
        if leaves and differentiable:
            found = torch.autograd.grad(differentiable, leaves, upstream, allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
        return [result.detach() for result in results] + found
    except (TypeError, ValueError, RuntimeError) as error:
        return error


def _has_kink(call: Call) -> bool:
    """Where rounding decides the gradient of a value near zero."""
    return call.arguments.get("activation") in ("relu", "leaky_relu", "prelu")


def _dtypes(call: Call) -> set[torch.dtype]:
    return {tensor.dtype for tensor in flat(list(call.arguments.values())) if tensor.dtype in TOLERANCE}


def check(call: Call) -> None:
    """Raises Wrong, or whatever else the call has raised that is no TypeError, ValueError or RuntimeError."""
    gradients = not call.broken
    found = answer(call, "native", gradients)
    if isinstance(found, Exception):
        text = str(found)
        if not text.startswith("segops.") and not any(words in text for words in NO_MEMORY):
            raise Wrong(f"unclear: {type(found).__name__}: {text[:300]}")
    if not call.has_reference:
        return _check_conversion(call, found)
    if any(tensor.is_meta for tensor in flat(list(call.arguments.values()))):
        return None  # there is nothing to compare
    if isinstance(found, Exception) and any(words in str(found) for words in NO_MEMORY):
        return None
    truth = answer(call, "reference", gradients, wide=not call.broken)
    if isinstance(found, Exception) or isinstance(truth, Exception):
        if type(found) is not type(truth):
            raise Wrong(f"{_told(found)}, but the reference: {_told(truth)}")
        return None
    if call.name == "upsample_argmax":
        return _check_labels(call, found)
    own = answer(call, "reference", gradients)
    assert not isinstance(own, Exception)
    if not len(found) == len(truth) == len(own):
        raise Wrong(f"{len(found)} tensors for {len(truth)}")
    for i, (x, y, z) in enumerate(zip(found, truth, own, strict=True)):
        _check_near(call, i, x, y, z)
    return None


def _bits(x: Tensor) -> Tensor:
    """Elements with their signs; any NaN is one NaN."""
    number = x.nan_to_num(0.0, float("inf"), float("-inf")) if x.dtype.is_floating_point else x
    return torch.stack([number.double(), number.signbit().double(), x.isnan().double()])


def _told(result: Answer) -> str:
    return f"{type(result).__name__}: {str(result)[:300]}" if isinstance(result, Exception) else "a result"


def _check_near(call: Call, i: int, found: Tensor, truth: Tensor, own: Tensor) -> None:
    """`truth` is computed in float64, `own` in the dtypes of the call, by the reference."""
    if found.shape != truth.shape or found.dtype != own.dtype:
        raise Wrong(f"result {i} is {found.dtype} {list(found.shape)}, not {own.dtype} {list(truth.shape)}")
    if not found.dtype.is_floating_point:
        if not torch.equal(found, own):
            raise Wrong(f"result {i} differs")
        return
    if i == 0 and call.name in MOVES and not torch.equal(_bits(found), _bits(own)):
        raise Wrong("an element differs, by its sign at least")
    if call.special and call.name == "dilated_conv2d":
        return  # Winograd's tiles spread NaN and infinity, and lose small numbers beside 1e30
    tolerance = max(TOLERANCE[dtype] for dtype in {found.dtype, *_dtypes(call)})
    if call.name == "dilated_conv2d" and call.arguments["precision"] == "fast":
        tolerance = max(tolerance, FAST)
    x, y, z = found.double(), truth.double(), own.double()
    if call.special and "loss" in call.name:  # tests/ops/test_*_loss_extremes.py say what else holds
        if i == 0 and bool((~truth.isfinite() & ~own.isfinite() & found.isfinite()).any()):
            raise Wrong("NaN or infinity is lost")
        return
    largest = torch.finfo(found.dtype).max
    same = (x == y) | (x.isnan() & (y.isnan() | z.isnan())) | (x == z) | ((y.abs() > 0.9 * largest) & ~x.isfinite())
    finite = y[y.isfinite()]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    near = (x - y).abs() <= tolerance * (y.abs() + scale)
    wrong = ~(same | near)
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise Wrong(f"result {i} at {at} is {x[tuple(at)]:.9g}, expected {y[tuple(at)]:.9g} (own {z[tuple(at)]:.9g})")


def _check_labels(call: Call, found: list[Tensor]) -> None:
    """Each label's logit is the largest, up to rounding; the score follows."""
    if call.special or not found[0].numel():
        return
    logits, size = call.arguments["logits"].double(), call.arguments["size"]
    full = F.interpolate(logits, size, mode="bilinear", align_corners=call.arguments["align_corners"])
    label = found[0].long()
    if label.numel() and (int(label.min()) < 0 or int(label.max()) >= logits.shape[1]):
        raise Wrong("a label that is no class")
    own = full.gather(1, label[:, None])
    if bool((own < full.amax(1, keepdim=True) - 1e-5 * logits.abs().max().clamp(min=1)).any()):
        raise Wrong("a label whose logit is not the largest")
    if len(found) > 1 and bool(((full.softmax(1).gather(1, label[:, None])[:, 0] - found[1]).abs() > 1e-4).any()):
        raise Wrong("another score")


def _check_conversion(call: Call, found: Answer) -> None:
    """There and back again."""
    if isinstance(found, Exception) or call.broken:
        return
    back = segops.flat_to_local_indices if call.name.startswith("local") else segops.local_to_flat_indices
    arguments = {**call.arguments, "indices": found[0]}
    if not torch.equal(back(**arguments), call.arguments["indices"]):
        raise Wrong("back again it is another")
