"""upsample_argmax in graphs, on fake tensors, beside autograd, and what is refused with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import segops
from segops import backends
from tests.cases import make_logits
from tests.ops.graphs import unless_refused

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded", "channels_last_crop"])
def test_opcheck(layout: str, kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).upsample_argmax.default
    for channels, dtype in ((3, torch.float32), (1, torch.bfloat16), (2, torch.float64)):
        x = make_logits((2, channels, 4, 5), dtype, layout, device=device)
        torch.library.opcheck(op, (x, 7, 11, False, torch.uint8, True))
        torch.library.opcheck(op, (x, 7, 11, True, torch.int64, False))


def test_compile_gives_the_same_bits(kernel_backend: str, device: str) -> None:
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return segops.upsample_argmax(x, (9, 33), return_score=True, backend=kernel_backend)

    for layout in ("contiguous", "channels_last", "sliced"):
        x = make_logits((2, 3, 4, 5), torch.bfloat16, layout, device=device)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for eager, same in zip(step(x), compiled(x), strict=True):
            assert torch.equal(same, eager)
            assert same.dtype == eager.dtype


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Compiled once for all sizes, with a size that depends on that of another tensor; between other nodes."""

    def step(x: Tensor, image: Tensor) -> Tensor:
        return segops.upsample_argmax(2 * x, image.shape[2:], dtype=torch.int32, backend=kernel_backend) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n, h, w in ((2, 4, 5), (3, 6, 9), (4, 7, 3)):
        x, image = torch.randn(n, 3, h, w, device=device), torch.empty(n, 3, 3 * h + 1, 2 * w + 1, device=device)
        assert torch.equal(compiled(x, image), step(x, image))
        torch.compiler.set_stance("fail_on_recompile")


def test_fake_and_meta_tensors_give_shapes_and_dtypes() -> None:
    x = make_logits((2, 3, 4, 5), torch.float16, "channels_last")
    with FakeTensorMode() as mode:
        fake = segops.upsample_argmax(mode.from_tensor(x), (8, 9), dtype=torch.int16, return_score=True)
    meta = segops.upsample_argmax(x.to("meta"), (8, 9), dtype=torch.int16, return_score=True)
    for labels, score in (fake, meta):
        assert labels.shape == score.shape == (2, 8, 9)
        assert (labels.dtype, score.dtype) == (torch.int16, torch.float32)


def test_no_gradient(backend: str, device: str) -> None:
    x = make_logits((1, 3, 4, 5), device=device).requires_grad_()
    labels, score = segops.upsample_argmax(x, 8, return_score=True, backend=backend)
    assert not labels.requires_grad
    assert not score.requires_grad
    assert not segops.upsample_argmax(x, 8, backend=backend).requires_grad


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_function_transforms_work_or_are_refused(transform: str, device: str) -> None:
    x = make_logits((3, 1, 2, 3, 4), device=device)

    def score(t: Tensor) -> Tensor:
        return segops.upsample_argmax(t, 7, return_score=True)[1]

    run: Callable[[], Tensor]
    if transform == "vmap":
        run, expected = lambda: torch.func.vmap(score)(x), torch.stack([score(one) for one in x])
    elif transform == "grad":
        run, expected = lambda: torch.func.grad(lambda t: score(t).sum())(x[0]), torch.zeros_like(x[0])
    else:
        run, expected = lambda: torch.func.jvp(score, (x[0],), (x[0],))[1], torch.zeros(1, 7, 7, device=device)
    result = unless_refused(run, "vmap|functorch|forward|jvp|torch.func")
    assert result is None or torch.equal(result, expected)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ([[1.0]], TypeError, "logits must be a tensor, got list"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), TypeError, "float16, got torch.int64"),
        (torch.zeros(2, 2), ValueError, "logits must be [N, C, h, w] with C, h and w at least 1, got [2, 2]"),
        (torch.zeros(1, 2, 0, 2), ValueError, "at least 1, got [1, 2, 0, 2]"),
        (torch.zeros(1, 0, 2, 2), ValueError, "at least 1, got [1, 0, 2, 2]"),
        (torch.zeros(1, 1, 2, 2).to_sparse(), TypeError, "logits must be a dense tensor"),
    ],
)
def test_bad_logits(x: Any, error: type[Exception], words: str, backend: str, device: str) -> None:
    x = x.to(device) if isinstance(x, Tensor) else x
    with pytest.raises(error, match=re.escape("segops.upsample_argmax: ") + ".*" + re.escape(words)):
        segops.upsample_argmax(x, 2, backend=backend)


@pytest.mark.parametrize(
    ("classes", "options", "error", "words"),
    [
        (257, {}, ValueError, "dtype torch.uint8 holds labels of at most 256 classes, got 257"),
        ((1 << 15) + 1, {"dtype": torch.int16}, ValueError, "dtype torch.int16 holds labels of at most 32768"),
        (3, {"dtype": torch.float32}, TypeError, "dtype must be torch.uint8, int16, int32 or int64, got torch.float32"),
        (3, {"dtype": torch.bool}, TypeError, "dtype must be torch.uint8, int16, int32 or int64, got torch.bool"),
        (3, {"dtype": "uint8"}, TypeError, "dtype must be torch.uint8, int16, int32 or int64, got 'uint8'"),
        (3, {"dtype": [torch.uint8]}, TypeError, "dtype must be torch.uint8, int16, int32 or int64, got [torch.uint8]"),
        (3, {"align_corners": 1}, TypeError, "align_corners must be a bool, got 1"),
        (3, {"return_score": None}, TypeError, "return_score must be a bool, got None"),
        (3, {"size": (0, 3)}, ValueError, "size must be at least 1 in each dimension, got (0, 3)"),
        (3, {"size": (1, 2, 3)}, ValueError, "size must be an int or a pair of ints, got 3 elements"),
        (3, {"size": 2.0}, TypeError, "size must be an int or a pair of ints, got 2.0"),
    ],
)
def test_bad_arguments(
    classes: int, options: dict[str, Any], error: type[Exception], words: str, backend: str, device: str
) -> None:
    x = torch.zeros(1, classes, 1, 1, device=device)
    with pytest.raises(error, match=re.escape(f"segops.upsample_argmax: {words}")):
        segops.upsample_argmax(x, **{"size": 2, **options}, backend=backend)


def test_operators_refuse_what_memory_safety_needs(kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).upsample_argmax
    x = torch.zeros(1, 257, 2, 2, device=device)
    if kernel_backend != "triton":
        with pytest.raises(RuntimeError):
            op(x, 3, 3, False, torch.uint8, False)
        with pytest.raises(RuntimeError):
            op(x, 3, 3, False, torch.float32, False)
        with pytest.raises(RuntimeError):
            op(x, 0, 3, False, torch.int64, False)
        with pytest.raises(RuntimeError):
            op(x[:, :0], 3, 3, False, torch.int64, False)
        with pytest.raises(RuntimeError):
            op(x[0], 3, 3, False, torch.int64, False)
