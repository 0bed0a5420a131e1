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

#: Bilinearly.
INTERPOLATE = ("upsample_bilinear2d", "upsample_cat")


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
    found = answer(call, None, call.gradients)
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
    if isinstance(found, Exception) and call.broken == "prepacked":
        return None  # the reference has no use for it
    truth = answer(call, "reference", call.gradients, wide=not call.broken)
    if isinstance(found, Exception) or isinstance(truth, Exception):
        if type(found) is not type(truth):
            raise Wrong(f"{_told(found)}, but the reference: {_told(truth)}")
        return None
    if call.name == "upsample_argmax":
        return _check_labels(call, found)
    own = answer(call, "reference", call.gradients)
    assert not isinstance(own, Exception)
    if not len(found) == len(truth) == len(own):
        raise Wrong(f"{len(found)} tensors for {len(truth)}")
    if "loss" in call.name and not call.special and any(_vanishes(call, head) for head in _heads(call)):
        _check_finite(found, truth)
        return None
    slack = _derivative_slack(call, found[0]) if call.name == "dilated_conv2d" and len(found) > 1 else None
    for i, (x, y, z) in enumerate(zip(found, truth, own, strict=True)):
        _check_near(call, i, x, y, z, slack[i - 1] if slack and i else None)
    return None


def _bits(x: Tensor) -> Tensor:
    """Elements with their signs; any NaN is one NaN."""
    number = x.nan_to_num(0.0, float("inf"), float("-inf")) if x.dtype.is_floating_point else x
    return torch.stack([number.double(), number.signbit().double(), x.isnan().double()])


def _told(result: Answer) -> str:
    return f"{type(result).__name__}: {str(result)[:300]}" if isinstance(result, Exception) else "a result"


def _check_near(call: Call, i: int, found: Tensor, truth: Tensor, own: Tensor, slack: Tensor | None) -> None:
    """`truth` is computed in float64, `own` in the dtypes of the call, by the reference; `slack` is allowed besides."""
    if found.shape != truth.shape or found.dtype != own.dtype:
        raise Wrong(f"result {i} is {found.dtype} {list(found.shape)}, not {own.dtype} {list(truth.shape)}")
    if not found.dtype.is_floating_point:
        off = found - own
        if off.any() and ("loss" not in call.name or off.sum(1).any() or int(off.abs().sum()) > 2 * _ties(call, i)):
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
        lost = ~truth.isfinite() & ~own.isfinite() & found.isfinite()
        if i == 0 and bool(lost.any()) and not _is_interpolated(call):  # see _barely_read
            raise Wrong("NaN or infinity is lost")
        return
    largest = torch.finfo(found.dtype).max
    same = (x == y) | (x.isnan() & (y.isnan() | z.isnan())) | (x == z) | ((y.abs() > 0.9 * largest) & ~x.isfinite())
    finite = y[y.isfinite()]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    if i == 0 and call.special and call.name in INTERPOLATE:
        same |= ~x.isfinite() & ~y.isfinite()  # infinity times a weight of 0, or of a little more
        same |= _barely_read(call) & ~(x.isfinite() & y.isfinite())
    near = (x - y).abs() <= tolerance * (y.abs() + scale) + (0.0 if slack is None else slack)
    wrong = ~(same | near)
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise Wrong(f"result {i} at {at} is {x[tuple(at)]:.9g}, expected {y[tuple(at)]:.9g} (own {z[tuple(at)]:.9g})")


def _barely_read(call: Call) -> Tensor:
    """Outputs that read NaN and infinity with a weight of rounding at most.

    A coordinate that is a whole number in exact arithmetic may be rounded to either side of it (the compiler fuses
    multiplication and addition where the processor can): the neighbour there then has a weight of 1e-16, of 0, or none.
    """
    marked = {
        key: (~value.isfinite()).double() if isinstance(value, Tensor) else value
        for key, value in call.arguments.items()
    }
    return getattr(segops, call.name)(**marked, backend="reference") < 1e-12


def _derivative_slack(call: Call, output: Tensor) -> list[Tensor] | None:
    """How far gradients may be off where they are computed from what 16 bits hold, as those of PyTorch's layers are.

    "silu" is differentiated at the convolution as rounded once, "sigmoid" at the output. That moves the derivative by
    at most a quarter of an epsilon of what "silu" is applied to, by half an epsilon for "sigmoid". The gradients are
    linear in it, so that those of absolute values bound what becomes of it.
    """
    activation = call.arguments["activation"]
    if output.element_size() != 2 or activation not in ("silu", "sigmoid"):
        return None
    leaves = []
    arguments: dict[str, Any] = {**call.arguments, "activation": None, "prepacked": None}
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[key] = value.double().abs().requires_grad_()
            leaves.append(arguments[key])
    most = segops.dilated_conv2d(**arguments, backend="reference")
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).double().abs()
    off = torch.finfo(output.dtype).eps * (most.detach() / 4 if activation == "silu" else 0.5)
    return list(torch.autograd.grad(most, leaves, upstream * off))


def _heads(call: Call) -> list[Tensor]:
    logits = call.arguments["logits"]
    return logits if isinstance(logits, list) else [logits]


def _at_target_size(call: Call, head: Tensor) -> Tensor:
    """In float64; `head` itself where it is not interpolated."""
    spatial = call.arguments["target"].shape[-2:]
    plane = head.ndim == 3 and "bce_weight" in call.arguments  # [N, h, w]
    if not (plane or head.ndim == 4) or head.shape[-2:] == spatial:
        return head.double()
    image = head.double()[:, None] if plane else head.double()
    full = F.interpolate(image, spatial, mode="bilinear", align_corners=call.arguments["align_corners"])
    return full[:, 0] if plane else full


def _is_interpolated(call: Call) -> bool:
    return any(_at_target_size(call, head).shape != head.shape for head in _heads(call))


def _ties(call: Call, i: int) -> int:
    """Pixels that result `i`, the confusion matrix of coarse logits, may count elsewhere: rounding decides there."""
    head = _heads(call)[(i - 1) // 4]  # behind the loss, four parts of each
    if head.shape[2:] == call.arguments["target"].shape[1:] or head.shape[1] == 1:
        return 0
    if call.special:
        return call.arguments["target"].numel()
    first, second = _at_target_size(call, head).topk(2, 1).values.unbind(1)
    return int((first - second <= 1e-5 * head.double().abs().max().clamp(min=1)).sum())


def _vanishes(call: Call, head: Tensor) -> bool:
    """Whether the probabilities of a class are so small that its score without smooth may be 0, or 0/0, which is 1."""
    if call.arguments["smooth"] != 0 or not head.numel():
        return False
    full, target = _at_target_size(call, head), call.arguments["target"]
    probability = full.sigmoid() if "bce_weight" in call.arguments else full.softmax(1)
    ignored = call.arguments["ignore_index"]
    counted = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    counted = counted if target.ndim == full.ndim else counted[:, None]
    most = torch.where(counted, probability ** (2 if call.arguments["squared"] else 1), 0.0)
    most = most.flatten(2 if full.ndim > 3 or "ce_weight" in call.arguments else 1).amax(-1)
    return bool(((most > 0) & (most < 1e-36)).any())


def _check_finite(found: list[Tensor], truth: list[Tensor]) -> None:
    for i, (x, y) in enumerate(zip(found, truth, strict=True)):
        in_range = y.abs() < 0.9 * torch.finfo(x.dtype).max if x.is_floating_point() else y.bool()
        if bool((in_range & ~x.isfinite()).any()):
            raise Wrong(f"result {i} is not finite")


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
