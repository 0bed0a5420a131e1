"""dice_ce_loss: what it refuses and with which words, bad labels, autocast, dtypes, and what autograd may ask of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import segops
from segops.backends import BackendUnavailableError
from tests.cases import make_logits, random_labels
from tests.ops.dice_ce_loss_eager import eager
from tests.ops.graphs import unless_refused
from tests.tolerances import compare, outcome

C = 5


@pytest.fixture
def logits(device: str) -> Tensor:
    return make_logits((2, C, 6, 7), device=device)


@pytest.fixture
def target(device: str) -> Tensor:
    return random_labels((2, 6, 7), C, device=device)


# What is passed instead, and the words that the message must hold after "segops.dice_ce_loss: ".
OPTIONS: list[tuple[type[Exception], dict[str, Any], str]] = [
    (TypeError, {"weight": [1.0] * C}, "weight must be a tensor, got list"),
    (TypeError, {"weight": torch.ones(C, dtype=torch.int64)}, "weight must be floating point, got int64"),
    (TypeError, {"weight": torch.ones(C).to_sparse()}, "weight must be a dense tensor, got torch.sparse_coo"),
    (ValueError, {"weight": torch.ones(C + 1)}, "weight must be [5], got [6]"),
    (ValueError, {"weight": torch.ones(C, 1)}, "weight must be [5], got [5, 1]"),
    (ValueError, {"weight": torch.ones(C, device="meta")}, "weight must be on cpu like logits, got meta"),
    (ValueError, {"weight": torch.ones(C, requires_grad=True)}, "weight must not require a gradient"),
    (TypeError, {"pixel_weight": 1.0}, "pixel_weight must be a tensor, got float"),
    (TypeError, {"pixel_weight": torch.ones(2, 6, 7).bool()}, "pixel_weight must be floating point, got bool"),
    (ValueError, {"pixel_weight": torch.ones(6, 7)}, "pixel_weight must be [2, 6, 7], got [6, 7]"),
    (ValueError, {"pixel_weight": torch.ones(2, 6, 7, requires_grad=True)}, "pixel_weight must not require a gradient"),
    (TypeError, {"dice_class_weight": (1,) * C}, "dice_class_weight must be a tensor, got tuple"),
    (ValueError, {"dice_class_weight": torch.ones(1)}, "dice_class_weight must be [5], got [1]"),
    (TypeError, {"ignore_index": 2.0}, "ignore_index must be an int, got float"),
    (TypeError, {"ignore_index": None}, "ignore_index must be an int, got NoneType"),
    (ValueError, {"ignore_index": 1 << 64}, "ignore_index must be"),
    (ValueError, {"label_smoothing": -0.1}, "label_smoothing must be in [0, 1], got -0.1"),
    (ValueError, {"label_smoothing": 1.1}, "label_smoothing must be in [0, 1], got 1.1"),
    (ValueError, {"label_smoothing": float("nan")}, "label_smoothing must be in [0, 1], got nan"),
    (TypeError, {"label_smoothing": "a little"}, "label_smoothing must be"),
    (ValueError, {"ce_weight": float("inf")}, "ce_weight must be finite, got inf"),
    (ValueError, {"ce_weight": float("nan")}, "ce_weight must be finite, got nan"),
    (TypeError, {"ce_weight": None}, "ce_weight must be"),
    (ValueError, {"dice_weight": -float("inf")}, "dice_weight must be finite, got -inf"),
    (TypeError, {"dice_weight": "1"}, "dice_weight must be"),
    (ValueError, {"smooth": -1.0}, "smooth must be finite and >= 0, got -1.0"),
    (ValueError, {"smooth": float("nan")}, "smooth must be finite and >= 0, got nan"),
    (ValueError, {"smooth": float("inf")}, "smooth must be finite and >= 0, got inf"),
    (TypeError, {"smooth": None}, "smooth must be"),
    (ValueError, {"overlap": "iou"}, """overlap must be "dice", "jaccard" or ("tversky", alpha, beta), got 'iou'"""),
    (ValueError, {"overlap": ("tversky", 0.5)}, "overlap must be"),
    (ValueError, {"overlap": ("focal", 0.5, 0.5)}, "overlap must be"),
    (ValueError, {"overlap": None}, "overlap must be"),
    (ValueError, {"overlap": ("tversky", -0.5, 0.5)}, "tversky needs finite alpha, beta >= 0, got -0.5, 0.5"),
    (ValueError, {"overlap": ("tversky", 0.5, float("inf"))}, "tversky needs finite alpha, beta >= 0, got 0.5, inf"),
    ((TypeError, ValueError), {"overlap": ("tversky", "much", 0.5)}, "tversky needs"),
    (ValueError, {"absent_classes": "ignore"}, """absent_classes must be "count" or "skip", got 'ignore'"""),
    (ValueError, {"reduction": "avg"}, """reduction must be "mean", "sum" or "none", got 'avg'"""),
    (ValueError, {"reduction": "none"}, 'dice_weight must be 0 with reduction="none"'),
    (
        ValueError,
        {"reduction": "none", "dice_weight": 0, "return_parts": True},
        'return_parts must be False with reduction="none"',
    ),
    (ValueError, {"validate": "yes"}, """validate must be "raise", "count" or "off", got 'yes'"""),
    (TypeError, {"squared": "no"}, "squared must be"),
    (TypeError, {"process_group": object()}, "process_group must be a torch.distributed.ProcessGroup, got object"),
]


@pytest.mark.parametrize(
    ("kind", "options", "words"), OPTIONS, ids=[f"{next(iter(o[1]))}: {o[2][:40]}" for o in OPTIONS]
)
def test_bad_options(
    kind: type[Exception],
    options: dict[str, Any],
    words: str,
    logits: Tensor,
    target: Tensor,
    backend: str,
    device: str,
) -> None:
    if device != "cpu":
        words = words.replace("on cpu", f"on {logits.device}")
    with pytest.raises(kind, match="^" + re.escape(f"segops.dice_ce_loss: {words}")):
        segops.dice_ce_loss(logits, target, backend=backend, **options)


def test_bad_logits_and_targets(logits: Tensor, target: Tensor, backend: str) -> None:
    def refuses(kind: type[Exception], words: str, x: Any, t: Any) -> None:
        with pytest.raises(kind, match="^" + re.escape(f"segops.dice_ce_loss: {words}")):
            segops.dice_ce_loss(x, t, backend=backend)

    dtypes = "logits must be float32, float64, bfloat16 or float16, got "
    refuses(TypeError, "logits must be a tensor, got list", logits.tolist(), target)
    refuses(TypeError, "target must be a tensor, got ndarray", logits, target.cpu().numpy())
    refuses(TypeError, dtypes + "int64", logits.long(), target)
    refuses(TypeError, dtypes + "complex64", logits.to(torch.complex64), target)
    refuses(TypeError, "logits must be a dense tensor, got torch.sparse_coo", logits.to_sparse(), target)
    refuses(TypeError, "target must be a dense tensor, got torch.sparse_coo", logits, target.to_sparse())
    labels = "target must be uint8, int16, int32 or int64, got "
    for dtype in (torch.bool, torch.int8, torch.float32):
        refuses(TypeError, labels + str(dtype).removeprefix("torch."), logits, target.to(dtype))
    refuses(ValueError, "logits must be [N, C, *spatial], got [2, 5]", logits[:, :, 0, 0], target[:, 0, 0])
    refuses(ValueError, "logits must have at least one class, got [2, 0, 6, 7]", logits[:, :0], target)
    refuses(ValueError, "target must be [2, 6, 7] for logits [2, 5, 6, 7], got [1, 6, 7]", logits, target[:1])
    refuses(ValueError, "target must be [2, 6, 7] for logits [2, 5, 6, 7], got [2, 1, 6, 7]", logits, target[:, None])
    refuses(ValueError, "target must be [2, 6] for logits [2, 5, 6], got [2, 6, 7]", logits[..., 0], target)
    refuses(ValueError, f"target must be on {logits.device} like logits, got meta", logits, target.to("meta"))


def test_unavailable_backends_say_why(logits: Tensor, target: Tensor, device: str) -> None:
    for name in ("triton", "simt"):
        reason = segops.backends.reason_unavailable(name, device)
        if reason is not None:
            with pytest.raises(BackendUnavailableError, match=re.escape(reason)):
                segops.dice_ce_loss(logits, target, backend=name)
    with pytest.raises(ValueError, match="backend must be one of native, triton, simt, reference, got 'fast'"):
        segops.dice_ce_loss(logits, target, backend="fast")


# Bad labels: [what is wrong with the target, what the message tells].
BAD_LABELS = {
    "one": (
        [(1, 2, 3, 5)],
        "target has 1 label outside [0, 5) that is not ignore_index (-100); the first is 5 at [1, 2, 3]",
    ),
    "negative": (
        [(0, 0, 0, -1)],
        "1 label outside [0, 5) that is not ignore_index (-100); the first is -1 at [0, 0, 0]",
    ),
    "several": (
        [(1, 5, 6, 1000), (0, 3, 2, 77), (0, 3, 3, -5)],
        "target has 3 labels outside [0, 5) that are not ignore_index (-100); the first is 77 at [0, 3, 2]",
    ),
    "last": ([(1, 5, 6, 255)], "the first is 255 at [1, 5, 6]"),
    "huge": ([(1, 0, 0, 1 << 62)], f"the first is {1 << 62} at [1, 0, 0]"),
    "most negative": ([(1, 0, 0, -(1 << 63))], f"the first is {-(1 << 63)} at [1, 0, 0]"),
}


def checked_loss(logits: Tensor, target: Tensor, **options: Any) -> Any:
    """The loss, and what a device has to tell of the labels by then."""
    result = segops.dice_ce_loss(logits, target, **options)
    segops.check_errors()
    return result


def spoil(target: Tensor, bad: list[tuple[int, ...]]) -> Tensor:
    target = target.clone()
    for *where, label in bad:
        target[tuple(where)] = label
    return target


@pytest.fixture(autouse=True)
def _fresh_count() -> Iterator[None]:
    segops.take_bad_data_count()
    yield
    segops.take_bad_data_count()


def test_an_int_beyond_64_bits_is_a_number(logits: Tensor, target: Tensor, backend: str) -> None:
    loss = segops.dice_ce_loss(logits, target, smooth=1 << 70, ce_weight=0, backend=backend)
    assert loss.item() == 0  # every score is 1


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_raise(name: str, logits: Tensor, target: Tensor, backend: str) -> None:
    bad, words = BAD_LABELS[name]
    x = logits.requires_grad_()
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        checked_loss(x, spoil(target, bad), backend=backend)
    assert str(error.value).startswith("segops.dice_ce_loss: target has ")
    assert segops.take_bad_data_count() == 0


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_bad_labels_of_every_dtype(label_dtype: torch.dtype, logits: Tensor, target: Tensor, backend: str) -> None:
    bad = {torch.uint8: 255, torch.int16: -32768, torch.int32: -(1 << 31)}[label_dtype]
    spoilt = target.to(label_dtype)
    spoilt[1, 4, 3] = bad
    with pytest.raises(ValueError, match=re.escape(f"not ignore_index (-2); the first is {bad} at [1, 4, 3]")):
        checked_loss(logits, spoilt, ignore_index=-2, backend=backend)
    checked_loss(logits, spoilt, ignore_index=bad, backend=backend)  # ... unless that is the ignored label


def test_an_ignored_class_is_not_bad_and_a_bad_one_not_ignored(logits: Tensor, target: Tensor, backend: str) -> None:
    checked_loss(logits, target, ignore_index=2, backend=backend)
    spoilt = spoil(target, [(0, 0, 1, -100)])
    with pytest.raises(ValueError, match=re.escape("not ignore_index (2); the first is -100 at [0, 0, 1]")):
        checked_loss(logits, spoilt, ignore_index=2, backend=backend)


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "dice_weight": 0}, {"return_parts": True}])
def test_bad_labels_count(options: dict[str, Any], logits: Tensor, target: Tensor, backend: str) -> None:
    for name in ("one", "several", "huge"):
        segops.dice_ce_loss(logits, spoil(target, BAD_LABELS[name][0]), validate="count", backend=backend, **options)
    segops.dice_ce_loss(logits, target, validate="count", backend=backend, **options)
    assert segops.take_bad_data_count() == 1 + 3 + 1
    assert segops.take_bad_data_count() == 0


@pytest.mark.parametrize("validate", ["count", "off"])
@pytest.mark.parametrize("options", [{}, {"batch_dice": True, "squared": True}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("ignore_index", [-100, 3, 255])
def test_bad_labels_that_do_not_raise_are_ignored(
    ignore_index: int, options: dict[str, Any], validate: str, logits: Tensor, target: Tensor, backend: str
) -> None:
    """Also in backward, and by the confusion matrix; nothing is read or written out of bounds for them."""
    spoilt = spoil(target, [(0, 0, 0, C), (0, 1, 1, -1), (1, 2, 2, 1 << 40), (1, 5, 6, -(1 << 63)), (0, 5, 0, 1 << 31)])
    bad = (spoilt < 0) | (spoilt >= C)
    result = compare(
        lambda x: segops.dice_ce_loss(
            x, spoilt, validate=validate, ignore_index=ignore_index, backend=backend, **options
        ),
        lambda x: eager(x, spoilt, ignore_index=ignore_index, **options),
        logits,
    )
    assert not result.actual.gradient.movedim(1, -1)[bad].any()
    _, parts = segops.dice_ce_loss(
        logits, spoilt, validate="off", ignore_index=ignore_index, return_parts=True, backend=backend
    )
    assert parts.confusion.sum() == ((spoilt != ignore_index) & ~bad).sum()
    assert segops.take_bad_data_count() == (0 if validate == "off" else 5 * 2 - 5)


def test_every_label_bad(logits: Tensor, target: Tensor, backend: str) -> None:
    with pytest.raises(ValueError, match="84 labels outside"):
        checked_loss(logits, target + 1000, backend=backend)
    x = logits.requires_grad_()
    segops.dice_ce_loss(x, target - 1000, validate="off", reduction="sum", backend=backend).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_autocast(dtype: torch.dtype, logits: Tensor, target: Tensor, backend: str, device: str) -> None:
    """Under autocast the loss is float32 (float64 stays what it is), from logits that are taken as they are."""
    x = logits.to(dtype).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = segops.dice_ce_loss(x, target, backend=backend)
        cross_entropy = segops.dice_ce_loss(x, target, reduction="none", dice_weight=0, backend=backend)
        _, parts = segops.dice_ce_loss(x, target, return_parts=True, backend=backend)
        theirs = F.cross_entropy(x, target)
    assert loss.dtype == cross_entropy.dtype == parts.ce.dtype == parts.scores.dtype == theirs.dtype
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == dtype
    truth = eager(x.detach().double(), target)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)  # not rounded to 16 bits


def test_autocast_and_linear_layers(logits: Tensor, target: Tensor, backend: str, device: str) -> None:
    head = torch.nn.Conv2d(C, C, 1).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = head(logits)
        loss = segops.dice_ce_loss(out, target, backend=backend)
    assert out.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    assert head.weight.grad.isfinite().all()
    assert head.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtype_of_the_loss_is_that_of_the_logits(
    dtype: torch.dtype, logits: Tensor, target: Tensor, backend: str
) -> None:
    x = logits.to(dtype)
    assert segops.dice_ce_loss(x, target, backend=backend).dtype == dtype
    assert segops.dice_ce_loss(x, target, backend=backend).shape == ()
    assert segops.dice_ce_loss(x, target, reduction="none", dice_weight=0, backend=backend).dtype == dtype


@pytest.mark.parametrize(
    "options", [{}, {"dice_weight": 0}, {"dice_weight": 0, "reduction": "none"}, {"squared": True}]
)
def test_double_backward_is_refused(
    options: dict[str, Any], logits: Tensor, target: Tensor, kernel_backend: str
) -> None:
    x = logits.requires_grad_()
    loss = segops.dice_ce_loss(x, target, backend=kernel_backend, **options).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=re.escape("segops.dice_ce_loss: double backward is not implemented")):
        gradient.square().sum().backward()
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        torch.autograd.functional.hessian(
            lambda t: segops.dice_ce_loss(t, target, backend=kernel_backend, **options).sum(), logits.detach()
        )


def tangent_of(logits: Tensor, target: Tensor, tangent: Tensor, requires_grad: bool) -> Tensor | None:
    """The directional derivative by forward-mode AD; None if it was refused."""
    import torch.autograd.forward_ad as forward_ad

    x = logits.detach().requires_grad_(requires_grad)
    with forward_ad.dual_level():
        try:
            loss = segops.dice_ce_loss(forward_ad.make_dual(x, tangent), target)
        except (RuntimeError, NotImplementedError) as error:
            assert re.search("forward|jvp", str(error)), f"unclear: {error}"  # noqa: PT017
            return None
        derivative = forward_ad.unpack_dual(loss).tangent
    return torch.zeros(()) if derivative is None else derivative


@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_works_or_is_refused(requires_grad: bool, logits: Tensor, target: Tensor) -> None:
    """A tangent that is silently dropped would be a derivative of zero."""
    tangent = torch.randn_like(logits)
    x = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(segops.dice_ce_loss(x, target), x)
    derivative = tangent_of(logits, target, tangent, requires_grad)
    assert derivative is None or torch.allclose(derivative, (gradient * tangent).sum(), rtol=1e-4)


def test_func_jvp_works_or_is_refused(logits: Tensor, target: Tensor) -> None:
    tangent = torch.randn_like(logits)
    x = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(segops.dice_ce_loss(x, target), x)
    try:
        _, derivative = torch.func.jvp(lambda t: segops.dice_ce_loss(t, target), (logits,), (tangent,))
    except (RuntimeError, NotImplementedError) as error:
        assert re.search("forward|jvp", str(error)), f"unclear: {error}"  # noqa: PT017
        return
    assert torch.allclose(derivative, (gradient * tangent).sum(), rtol=1e-4)


@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap of grad"])
@pytest.mark.parametrize("validate", ["raise", "count", "off"])
def test_function_transforms_work_or_are_refused(validate: str, transform: str, logits: Tensor, target: Tensor) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return segops.dice_ce_loss(x, t, validate=validate)

    xs, ts = torch.stack([logits, logits + 1, -logits]), torch.stack([target, target, target.flip(0)])
    run = {
        "vmap": lambda: torch.func.vmap(loss)(xs, ts),
        "grad": lambda: torch.stack([torch.func.grad(loss)(x, t) for x, t in zip(xs, ts, strict=True)]),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss))(xs, ts),
    }[transform]
    each = [outcome(functools.partial(eager, target=t), x) for x, t in zip(xs, ts, strict=True)]
    expected = torch.stack([e.value if transform == "vmap" else e.gradient for e in each])
    result = unless_refused(run)
    assert result is None or torch.allclose(result, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("validate", ["raise", "count", "off"])
def test_fake_tensors_give_shapes(validate: str, logits: Tensor, target: Tensor) -> None:
    """As cross_entropy does: nobody reads a fake record."""
    with FakeTensorMode() as mode:
        x, t = mode.from_tensor(logits), mode.from_tensor(target)
        assert segops.dice_ce_loss(x, t, validate=validate).shape == F.cross_entropy(x, t).shape == ()
        assert segops.dice_ce_loss(x, t, dice_weight=0, reduction="none", validate=validate).shape == t.shape


def test_meta_tensors_give_shapes(logits: Tensor, target: Tensor) -> None:
    x, t = logits.to("meta"), target.to("meta")
    assert segops.dice_ce_loss(x, t).shape == F.cross_entropy(x, t).shape == ()
