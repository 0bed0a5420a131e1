"""Hypothesis strategies for calls of the operators' public functions: good ones, odd ones and wrong ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import segops
from segops.ops.dilated_conv import prepack

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
POOLED = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Draw = Callable[[st.SearchStrategy], Any]


@dataclasses.dataclass
class Call:
    """``getattr(segops, name)(**arguments)``.

    Attributes:
        special: whether there are NaN, infinities or denormals among the values.
        broken: the argument that was replaced by something wrong, or "".
        gradients: whether they are asked for as well.
        has_reference: whether the function takes a backend.
    """

    name: str
    arguments: dict[str, Any]
    special: bool = False
    broken: str = ""
    gradients: bool = True
    has_reference: bool = True

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={_shown(value)}' for key, value in self.arguments.items())})"


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.is_nested:
        return f"<nested {value.dtype}>"
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"<{value.layout} {value.device} {list(value.shape)}>"
    dtype = "-" * value.is_neg() + str(value.dtype).removeprefix("torch.")
    text = f"<{dtype} {list(value.shape)} strides {list(value.stride())}"
    return text + (f" from {value.storage_offset()}>" if value.storage_offset() else ">")


SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-310, 6e-8, 1e30, -1e30)


def size(draw: Draw, most: int = 20) -> int:
    return draw(st.integers(1, 5)) if draw(st.booleans()) else draw(st.integers(1, most))


def batch(draw: Draw) -> int:
    return draw(st.sampled_from((0, 1, 1, 1, 2, 2, 3)))


def laid_out(draw: Draw, x: Tensor) -> Tensor:
    """The same numbers in other places: channels last, a slice, turned axes, a shift off the alignment, negated.

    An expanded tensor alone has the first ones along an axis for all.
    """
    kinds = ("contiguous", "contiguous", "last", "slice", "turned", "shifted", "wide", "expanded", "negated")
    kind = draw(st.sampled_from(kinds))
    if kind == "last" and x.ndim >= 3:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if kind == "slice":  # every second one along an axis, the rest is poison
        axis = draw(st.integers(0, x.ndim - 1)) if x.ndim else None
        if axis is None or x.numel() == 0:
            return x
        shape = list(x.shape)
        shape[axis] *= 2
        large = _poison(torch.empty(shape, dtype=x.dtype))
        view = large.unflatten(axis, (x.shape[axis], 2)).select(axis + 1, 0)
        return view.copy_(x)
    if kind == "turned" and x.ndim >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "shifted":
        flat = _poison(torch.empty(x.numel() + 3, dtype=x.dtype))
        return flat[3:].view(x.shape).copy_(x)
    if kind == "wide" and x.ndim >= 2 and x.numel():  # a narrow of channels, with the memory format kept
        large = _poison(torch.empty((x.shape[0], x.shape[1] + 3, *x.shape[2:]), dtype=x.dtype))
        return large[:, 1 : 1 + x.shape[1]].copy_(x)
    if kind == "expanded" and x.ndim and x.numel():
        return x.narrow(draw(st.integers(0, x.ndim - 1)), 0, 1).expand(x.shape)
    if kind == "negated" and x.dtype != torch.bool:  # as the imaginary part of a conjugate has it
        return torch._neg_view(-x)
    return x


def _poison(x: Tensor) -> Tensor:
    return x.fill_(math.nan if x.dtype.is_floating_point else 77)


def image(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, special: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if dtype.is_floating_point:
        x = torch.randn(shape, generator=generator) * draw(st.sampled_from((1.0, 1.0, 30.0)))
        if draw(st.booleans()):
            x = x.round()  # ties
        x = x.to(dtype)
        if special and x.numel():
            places = torch.randint(0, x.numel(), (draw(st.integers(1, 4)),), generator=generator)
            values = torch.tensor([draw(st.sampled_from(SPECIAL)) for _ in places], dtype=torch.float64)
            x.view(-1)[places] = values.to(dtype)
    else:
        x = torch.randint(0, 100, shape, generator=generator).to(dtype)
    return laid_out(draw, x)


def labels(draw: Draw, shape: tuple[int, ...], classes: int, ignore: int | None, bad: bool = True) -> Tensor:
    dtype = draw(st.sampled_from(LABELS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    largest = min(classes, torch.iinfo(dtype).max + 1)
    x = torch.randint(0, largest, shape, generator=generator)
    if ignore is not None and torch.iinfo(dtype).min <= ignore <= torch.iinfo(dtype).max:
        x = torch.where(torch.rand(shape, generator=generator) < draw(st.sampled_from((0.1, 1.0))), ignore, x)
    if bad and x.numel() and draw(st.integers(0, 7)) == 0:
        wrong = draw(st.sampled_from((-1, classes, 255, 2**15 - 1, -(2**15), 2**31 - 1, 2**63 - 1, -(2**63))))
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = wrong
    return laid_out(draw, x.to(dtype))


def optional(draw: Draw, make: Callable[[], Any]) -> Any:
    return make() if draw(st.integers(0, 3)) == 0 else None


def weights(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    x = image(draw, shape, draw(st.sampled_from(FLOATS))).abs()
    return x * (x > 0.3) if draw(st.booleans()) else x


def _pair(draw: Draw, low: int, high: int) -> Any:
    one = st.integers(low, high)
    return draw(one) if draw(st.booleans()) else (draw(one), draw(one))


def _resize(draw: Draw) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"size": size(draw, 40) if draw(st.booleans()) else (size(draw, 40), size(draw, 40))}
    scale = st.sampled_from((0.3, 0.5, 1, 1.0, 1.5, 2, 2.0, 2.7, 4, 8, 1e-3))
    return {"scale_factor": draw(scale) if draw(st.booleans()) else (draw(scale), draw(scale))}


def _coarse(draw: Draw, special: bool, channels: int = 8) -> Tensor:
    shape = (batch(draw), size(draw, channels), size(draw), size(draw))
    return image(draw, shape, draw(st.sampled_from(FLOATS)), special)


def upsample_bilinear2d(draw: Draw, special: bool) -> dict[str, Any]:
    return {"input": _coarse(draw, special), **_resize(draw), "align_corners": draw(st.booleans())}


def upsample_nearest2d(draw: Draw, special: bool) -> dict[str, Any]:
    return {"input": _coarse(draw, special), **_resize(draw)}


def bed_of_nails2d(draw: Draw, special: bool) -> dict[str, Any]:
    return {"input": _coarse(draw, special), "scale": draw(st.integers(1, 5))}


def upsample_cat(draw: Draw, special: bool) -> dict[str, Any]:
    x = _coarse(draw, special)
    skip = (x.shape[0], size(draw, 8), size(draw, 40), size(draw, 40))
    dtype = draw(st.sampled_from((x.dtype, x.dtype, x.dtype, *FLOATS)))
    order = draw(st.sampled_from(("skip_first", "up_first")))
    skipped = image(draw, skip, dtype, special)
    return {"input": x, "skip": skipped, "align_corners": draw(st.booleans()), "order": order}


def upsample_argmax(draw: Draw, special: bool) -> dict[str, Any]:
    return {
        "logits": _coarse(draw, special, draw(st.sampled_from((3, 20, 20, 260)))),
        "size": (size(draw, 40), size(draw, 40)),
        "align_corners": draw(st.booleans()),
        "dtype": draw(st.sampled_from(LABELS)),
        "return_score": draw(st.booleans()),
    }


def confusion_matrix(draw: Draw, special: bool) -> dict[str, Any]:
    classes = size(draw, 30)
    ignore = draw(st.sampled_from((None, None, 255, -100, 0)))
    shape = (batch(draw), *(size(draw) for _ in range(draw(st.integers(1, 3)))))
    if draw(st.booleans()):
        logits = image(draw, (shape[0], classes, *shape[1:]), draw(st.sampled_from(FLOATS)), special)
        prediction, num_classes = logits, draw(st.sampled_from((None, classes)))
    else:
        prediction, num_classes = labels(draw, shape, classes, None), classes
    target = labels(draw, shape, classes, ignore)
    return {"prediction": prediction, "target": target, "num_classes": num_classes, "ignore_index": ignore}


def _window(draw: Draw) -> dict[str, Any]:
    kernel = _pair(draw, 1, draw(st.sampled_from((3, 5, 17))))
    half = min(kernel if isinstance(kernel, tuple) else (kernel,)) // 2
    return {
        "kernel_size": kernel,
        "stride": optional(draw, lambda: _pair(draw, 1, 4)),
        "padding": _pair(draw, 0, half),
        "dilation": draw(st.sampled_from((1, 1, 1, 2, 3, (1, 2)))),
    }


def max_pool2d(draw: Draw, special: bool) -> dict[str, Any]:
    shape = (batch(draw), size(draw, 20), size(draw, 30), size(draw, 30))[draw(st.sampled_from((0, 0, 0, 1))) :]
    x = image(draw, shape, draw(st.sampled_from(POOLED)), special)
    return {"input": x, **_window(draw), "ceil_mode": draw(st.booleans())}


def max_unpool2d(draw: Draw, special: bool) -> dict[str, Any]:
    window = _window(draw)
    shape = (batch(draw), size(draw, 20), size(draw, 12), size(draw, 12))
    x = image(draw, shape, draw(st.sampled_from(POOLED)), special)
    kernel = window["kernel_size"]
    taps = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        indices = torch.randint(0, min(taps, 256), shape, generator=generator).to(torch.uint8)
    else:
        indices = torch.randint(0, max(1, shape[2] * shape[3]), shape, generator=generator)
    if indices.numel() and draw(st.integers(0, 3)) == 0:
        wrong = draw(st.sampled_from((255, 254) if indices.dtype == torch.uint8 else (-1, 2**40, -(2**63), 2**63 - 1)))
        indices.view(-1)[draw(st.integers(0, indices.numel() - 1))] = wrong
    output_size = optional(draw, lambda: (size(draw, 60), size(draw, 60)))
    return {"input": x, "indices": laid_out(draw, indices), **window, "output_size": output_size}


def dilated_conv2d(draw: Draw, special: bool) -> dict[str, Any]:
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    most = draw(st.sampled_from((4, 40)))
    given, made = groups * size(draw, most // groups), groups * size(draw, most // groups)
    dtype = draw(st.sampled_from(FLOATS))
    kernel = draw(st.sampled_from(((3, 3), (3, 3), (3, 3), (1, 1), (5, 2), (2, 2))))
    plain = draw(st.booleans())
    stride, dilation = (1, draw(st.sampled_from((1, 2, 4)))) if plain else (_pair(draw, 1, 3), _pair(draw, 1, 3))
    padding = draw(st.sampled_from((0, 1, 2, (1, 3), "same", "valid", dilation)))
    x = image(draw, (batch(draw), given, size(draw, 30), size(draw, 30)), dtype, special)
    weight = image(draw, (made, given // groups, *kernel), dtype)
    arguments: dict[str, Any] = {
        "input": x, "weight": weight, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups
    }  # fmt: skip
    for name in ("bias", "scale", "shift"):
        arguments[name] = optional(draw, lambda: image(draw, (made,), draw(st.sampled_from(FLOATS))))
    arguments["activation"] = draw(st.sampled_from((None, "relu", "leaky_relu", "silu", "sigmoid", "prelu")))
    if arguments["activation"] == "prelu":
        arguments["slope"] = image(draw, (made,), dtype)
    if draw(st.integers(0, 3)) == 0:
        try:
            shape = segops.dilated_conv2d(
                x.detach(),
                weight,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                backend="reference",
            ).shape
        except ValueError:  # too small, or stride with "same": the call itself is to say so
            shape = x.shape
        arguments["residual"] = image(draw, tuple(shape), dtype)
    arguments["precision"] = draw(st.sampled_from(("default", "fast")))
    if kernel == (3, 3) and draw(st.integers(0, 3)) == 0:
        arguments["prepacked"] = prepack(weight, arguments["precision"])
    return arguments


def _loss_options(draw: Draw, term: str) -> dict[str, Any]:
    overlap = draw(st.sampled_from(("dice", "dice", "jaccard", ("tversky", 0.3, 0.7), ("tversky", 0, 1.5))))
    options: dict[str, Any] = {
        f"{term}_weight": draw(st.sampled_from((1.0, 1, 0, 0.3, -2.0))),
        "dice_weight": draw(st.sampled_from((1.0, 1, 0, 0.5))),
        "overlap": overlap,
        "smooth": draw(st.sampled_from((1e-5, 0, 1.0))),
        "batch_dice": draw(st.booleans()),
        "squared": draw(st.booleans()),
        "align_corners": draw(st.booleans()),
        "reduction": draw(st.sampled_from(("mean", "mean", "sum", "none"))),
        "return_parts": draw(st.booleans()),
        "validate": draw(st.sampled_from(("raise", "raise", "count", "off"))),
    }
    if options["reduction"] == "none" and draw(st.integers(0, 7)):
        options |= {"dice_weight": 0, "return_parts": False}
    return options


def _sizes(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the logits and of the target."""
    kind = draw(st.sampled_from(("same", "same", "coarse", "any")))
    if kind == "same":
        spatial = tuple(size(draw) for _ in range(draw(st.sampled_from((1, 2, 2, 2, 3)))))
        return spatial, spatial
    coarse = (size(draw, 12), size(draw, 12))
    if kind == "coarse":
        return coarse, tuple(s * draw(st.integers(1, 4)) for s in coarse)
    return coarse, (size(draw, 30), size(draw, 30))


def dice_ce_loss(draw: Draw, special: bool) -> dict[str, Any]:
    n, classes = batch(draw), size(draw, draw(st.sampled_from((4, 21, 21, 70))))
    coarse, fine = _sizes(draw)
    ignore = draw(st.sampled_from((-100, -100, 255, 0)))
    return {
        "logits": image(draw, (n, classes, *coarse), draw(st.sampled_from(FLOATS)), special),
        "target": labels(draw, (n, *fine), classes, ignore),
        "ignore_index": ignore,
        "weight": optional(draw, lambda: weights(draw, (classes,))),
        "pixel_weight": optional(draw, lambda: weights(draw, (n, *fine))),
        "dice_class_weight": optional(draw, lambda: weights(draw, (classes,))),
        "label_smoothing": draw(st.sampled_from((0.0, 0, 0.1, 1))),
        "include_background": draw(st.booleans()),
        "absent_classes": draw(st.sampled_from(("count", "skip"))),
        **_loss_options(draw, "ce"),
    }


def dice_bce_loss(draw: Draw, special: bool) -> dict[str, Any]:
    n, channels = batch(draw), size(draw, 8)
    coarse, fine = _sizes(draw)
    leading = (n,) if len(fine) == 2 and draw(st.booleans()) else (n, channels)
    channels = channels if len(leading) == 2 else 1
    dtype = draw(st.sampled_from((torch.bool, torch.uint8, *FLOATS)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    target = torch.rand((*leading, *fine), generator=generator)
    target = target.to(dtype) if dtype.is_floating_point else (target < 0.4).to(dtype)
    ignore = draw(st.sampled_from((None, None, 255, -1)))
    if target.numel() and draw(st.integers(0, 5)) == 0:
        value = {torch.bool: True, torch.uint8: 255}.get(dtype, -1.0)
        target.view(-1)[draw(st.integers(0, target.numel() - 1))] = value
    shape = (n, channels, *coarse) if len(leading) == 2 else (n, *coarse)
    return {
        "logits": image(draw, shape, draw(st.sampled_from(FLOATS)), special),
        "target": laid_out(draw, target),
        "ignore_index": ignore,
        "pos_weight": optional(draw, lambda: weights(draw, (channels,))),
        "pixel_weight": optional(draw, lambda: weights(draw, (n, *fine))),
        "focal_gamma": draw(st.sampled_from((0.0, 0, 1, 2.0, 0.5))),
        **_loss_options(draw, "bce"),
    }


def deep_supervision_loss(draw: Draw, special: bool) -> dict[str, Any]:
    loss = draw(st.sampled_from((dice_ce_loss, dice_bce_loss)))
    first = loss(draw, special)
    first.pop("reduction")
    logits = first.pop("logits")
    leading = 1 if loss is dice_bce_loss and logits.ndim == 3 else 2
    heads = [logits]
    for _ in range(draw(st.integers(0, 2))):
        spatial = (size(draw, 8), size(draw, 8)) if logits.ndim == leading + 2 else logits.shape[leading:]
        heads.append(image(draw, (*logits.shape[:leading], *spatial), logits.dtype, special))
    scales = [draw(st.sampled_from((1, 0.5, 0.0, -1.0))) for _ in heads]
    return {"logits": heads, "weights": scales, "loss": loss.__name__.removesuffix("_loss"), **first}


def _indices(draw: Draw) -> tuple[dict[str, Any], Tensor, Tensor]:
    while True:
        window = _window(draw)
        x = image(draw, (batch(draw), size(draw, 4), size(draw, 20), size(draw, 20)), torch.float32)
        try:
            pooled, local = segops.max_pool2d(x, **window, backend="reference")
        except ValueError:
            continue
        return {"input_size": tuple(x.shape[-2:]), **window}, pooled, local


def local_to_flat_indices(draw: Draw, special: bool) -> dict[str, Any]:
    window, _, local = _indices(draw)
    local = local.contiguous()
    if local.numel() and draw(st.booleans()):
        local.view(-1)[0] = draw(st.integers(0, 255))
    return {"indices": laid_out(draw, local), **window}


def flat_to_local_indices(draw: Draw, special: bool) -> dict[str, Any]:
    window, _, local = _indices(draw)
    flat = segops.local_to_flat_indices(local, **window).contiguous()
    if flat.numel() and draw(st.booleans()):
        flat.view(-1)[0] = draw(st.sampled_from((-1, 0, 7, 2**40, -(2**63), 2**63 - 1)))
    return {"indices": laid_out(draw, flat), **window}


FUNCTIONS: dict[str, Callable[[Draw, bool], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        bed_of_nails2d, confusion_matrix, deep_supervision_loss, dice_bce_loss, dice_ce_loss, dilated_conv2d,
        flat_to_local_indices, local_to_flat_indices, max_pool2d, max_unpool2d, upsample_argmax, upsample_bilinear2d,
        upsample_cat, upsample_nearest2d,
    )
}  # fmt: skip

#: What no argument takes, or not there; sizes are small or beyond any memory, so that nothing swaps.
WRONG: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 1, lambda: 1.5, lambda: math.nan, lambda: math.inf,
    lambda: 2**62, lambda: -(2**63), lambda: 2**70, lambda: "relu", lambda: "", lambda: (), lambda: (1,),
    lambda: (1, 2, 3), lambda: (-1, 2), lambda: [2, "x"], lambda: (2**62, 2**62), lambda: torch.float16,
    lambda: object(),
    lambda: torch.tensor(1.0), lambda: torch.zeros(0), lambda: torch.ones(2, 3), lambda: torch.ones(1, 2, 3, 4),
    lambda: torch.ones(1, 0, 3, 4), lambda: torch.ones(2, 3, dtype=torch.int64), lambda: torch.ones(1, 2, 3, 4) * 1j,
    lambda: torch.ones(1, 2, 3, 4).to_sparse(), lambda: torch.ones(1, 2, 3, 4, device="meta"),
    lambda: torch.ones(1, 2, 3, 4, dtype=torch.bool), lambda: torch.ones(1, 2, 3, 4).numpy(),
    lambda: [torch.ones(1, 2)],
    lambda: {}, lambda: torch.ones(3, requires_grad=True), lambda: torch.ones(1, 2, 3, 4).to(torch.float8_e4m3fn),
)  # fmt: skip


@st.composite
def calls(draw: Draw, name: str) -> Call:
    """A call of ``segops.<name>``: of six, one with a wrong argument and one with special values."""
    kind = draw(st.integers(0, 5))
    call = Call(name, FUNCTIONS[name](draw, kind == 1), kind == 1)
    call.has_reference = not name.endswith("_indices")
    inference = call.arguments.get("prepacked") is not None or draw(st.integers(0, 3)) == 0
    call.gradients = kind != 0 and not inference
    if kind == 0:
        call.broken = draw(st.sampled_from(sorted(call.arguments)))
        given = call.arguments[call.broken]
        if isinstance(given, Tensor) and draw(st.booleans()):
            call.arguments[call.broken] = draw(st.sampled_from(OTHERS))(given)
        else:
            call.arguments[call.broken] = draw(st.sampled_from(WRONG))()
    return call


def _of_other_shape(x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.ndim < 2 else x[..., :0] if x.shape[-1] % 2 else x.flatten(0, 1)


def _of_other_dtype(x: Tensor) -> Tensor:
    return x.to(torch.int32 if x.dtype.is_floating_point else torch.float64)


def _sparse_rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1).to_sparse_csr() if x.ndim and x.numel() else x.to_sparse()


def _opaque(x: Tensor) -> Tensor:
    return x.to_mkldnn() if x.dtype == torch.float32 and x.numel() else x.to_sparse()


def _nested(x: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor([x, x], layout=torch.jagged if x.ndim % 2 else torch.strided)


#: Tensors that no argument takes, made of those that it takes: without strides, and others.
WITHOUT_STRIDES: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x.to_sparse(), _sparse_rows, _opaque, _nested)
OTHERS = (*WITHOUT_STRIDES, _of_other_shape, _of_other_dtype, lambda x: x.to("meta"))
