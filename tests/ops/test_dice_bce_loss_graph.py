"""dice_bce_loss inside graphs: torch.library.opcheck, torch.compile, torch.export, fake tensors, transforms."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from segops import backends
from tests.cases import make_logits
from tests.ops.dice_bce_loss_eager import OPTIONS, fill, make_target
from tests.ops.graphs import assert_compiled_once, reloaded
from tests.ops.loss_graphs import (
    BACKWARD_LAYOUTS,
    Loss,
    assert_equal_leaves,
    assert_further_derivatives_are_refused,
    assert_same_bits,
    checked,
    doubles,
)

N, C, H, W = 2, 5, 6, 7
F32, F64, BF16, F16, U8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8


pytestmark = pytest.mark.usefixtures("fresh_compiler")


# [logits dtype, layout, label dtype, shape, pos_weight?, channels of pixel weights (0: none), then the op's options]
STATISTICS = {
    "plain": (F32, "contiguous", U8, (N, C, H, W), False, 0, (None, 0.0, False, True, False, 0)),
    "weights": (F64, "channels_last", F32, (N, C, H, W), True, 1, (255, 1.5, True, True, False, 0)),
    "map": (F32, "channels_last", BF16, (N, C, H, W), True, C, (None, 2.0, False, False, True, 0)),
    "map of bfloat16": (BF16, "contiguous", F16, (N, 1, 3, 9), False, 1, (9, 0.0, False, False, True, 1)),
    "float16, 3-D": (F16, "channels_last", F64, (N, C, 2, 3, 4), False, C, (2, 0.5, True, True, False, 2)),
    "strided": (F32, "sliced", U8, (N, C, H, W), False, 0, (None, 0.0, False, True, True, 0)),
    "one pixel": (F32, "contiguous", U8, (N, 1, 1, 1), True, 0, (None, 0.0, False, True, False, 0)),
}  # fmt: skip
#: Only images are interpolated.
SAMPLES = pytest.mark.parametrize(
    ("name", "coarse"),
    [*((name, False) for name in STATISTICS), *((name, True) for name, s in STATISTICS.items() if len(s[3]) == 4)],
)
KINDS = pytest.mark.parametrize("coarse", [False, True], ids=["dense", "coarse"])


def sample_inputs(
    sample: tuple[Any, ...], coarse: bool, device: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype, layout, label_dtype, shape, with_pos_weight, weights, options = sample
    logits = make_logits(shape, dtype, layout, device=device)
    size = (shape[0], shape[1], 9, 11) if coarse else shape
    target = make_target(size, label_dtype, options[0], device=device)
    accumulate = F64 if dtype == F64 else F32
    pixel_weight = doubles(size[0], weights, *size[2:]).to(device, accumulate) if weights else None
    return logits, target, doubles(shape[1]).to(device) if with_pos_weight else None, pixel_weight


def operator(name: str, coarse: bool, backend: str) -> Any:
    ops = getattr(torch.ops, backends.namespace(backend))
    return getattr(ops, f"dice_bce_loss{'_coarse' * coarse}_{name}").default


@SAMPLES
def test_opcheck_statistics(name: str, coarse: bool, kernel_backend: str, device: str) -> None:
    logits, *others = sample_inputs(STATISTICS[name], coarse, device)
    arguments = (logits.requires_grad_(), *others, *STATISTICS[name][-1], *[True] * coarse)
    op = operator("statistics", coarse, kernel_backend)
    torch.library.opcheck(op, arguments)
    torch.library.opcheck(op, (logits.detach(), *arguments[1:]), test_utils=("test_schema", "test_faketensor"))


@SAMPLES
def test_opcheck_backward_options(name: str, coarse: bool, kernel_backend: str, device: str) -> None:
    inputs, options = sample_inputs(STATISTICS[name], coarse, device), STATISTICS[name][-1]
    n, c = inputs[0].shape[:2]
    for grad_overlap, grad_bce in ((doubles(n, 3, c).to(device), None), (None, doubles(2).to(device))):
        arguments = (*inputs, grad_overlap, grad_bce, *options[:3], *[False] * coarse)
        torch.library.opcheck(operator("backward", coarse, kernel_backend), arguments)


@KINDS
@pytest.mark.parametrize("layout", BACKWARD_LAYOUTS)
def test_opcheck_backward_layouts(layout: str, coarse: bool, kernel_backend: str, device: str) -> None:
    """The fake must know the strides of the gradient for every layout of the logits."""
    logits = make_logits((N, C, H, W), layout=layout, device=device)
    target = make_target((N, C, 13, 14) if coarse else (N, C, H, W), device=device)
    gradients = (doubles(N, 3, C).to(device), doubles(2).to(device))
    arguments = (logits, target, None, None, *gradients, None, 0.0, False, *[False] * coarse)
    torch.library.opcheck(operator("backward", coarse, kernel_backend), arguments)


@KINDS
@pytest.mark.parametrize("name", ["default", "focal 3.7", "everything", "map"])
def test_compile_gives_the_same_bits(name: str, coarse: bool, kernel_backend: str, device: str) -> None:
    options = {"reduction": "none", "dice_weight": 0.0} if name == "map" else OPTIONS[name]
    target = make_target((N, C, H, W), device=device)
    options = fill(options, target)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return segops.dice_bce_loss(x, t, backend=kernel_backend, **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for layout, dtype in (("contiguous", F32), ("channels_last", BF16), ("sliced", F32)):
        x = make_logits((N, C, 3, 4) if coarse else (N, C, H, W), dtype, layout, device=device)
        assert_same_bits(compiled, loss, x, target)


def test_compile_of_bool_targets_and_maps_without_channels(backend: str, device: str) -> None:
    logits, target = make_logits((N, H, W), device=device), make_target((N, H, W), torch.bool, device=device)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return segops.dice_bce_loss(x, t, pos_weight=torch.full((), 2.0, device=device), backend=backend)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled, loss, logits, target, strides=False)


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Forward and backward of a parameter and the loss, compiled once for all sizes of logits and target."""
    gain = torch.ones(C, 1, 1, device=device, requires_grad=True)

    def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss, parts = segops.dice_bce_loss(gain * images, target, return_parts=True, backend=kernel_backend)
        return 2 * loss, parts.scores

    sizes = ((2, 3, 4, 12, 14), (3, 5, 2, 9, 7), (4, 2, 6, 11, 13))
    inputs = (
        (torch.randn(n, C, h, w, device=device), make_target((n, C, height, width), device=device))
        for n, h, w, height, width in sizes
    )
    assert_compiled_once(step, gain, inputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [U8, F32], ids=str)
def test_compiled_bad_labels_raise_runtime_error_with_the_same_text(
    dtype: torch.dtype, kernel_backend: str, device: str
) -> None:
    logits, target = make_logits((N, C, H, W), device=device), make_target((N, C, H, W), dtype, device=device)
    target[1, 2, 3, 4], target[1, 4, 4, 4] = 77, 2

    with pytest.raises(ValueError, match="2 labels outside") as eager:
        checked(lambda: segops.dice_bce_loss(logits, target, ignore_index=255, backend=kernel_backend))
    compiled = torch.compile(
        lambda x, t: segops.dice_bce_loss(x, t, ignore_index=255, backend=kernel_backend),
        fullgraph=True,
        backend="aot_eager",
    )
    kind, words = (RuntimeError, re.escape(str(eager.value))) if device == "cpu" else (ValueError, "2 label")
    with pytest.raises(kind, match=words):
        checked(lambda: compiled(logits, target))


@pytest.mark.parametrize("options", [{}, {"return_parts": True, "ignore_index": 255, "batch_dice": True}])
def test_export(options: dict[str, Any], device: str) -> None:
    logits, target = make_logits((N, C, H, W), device=device), make_target((N, C, H, W), device=device)
    n, h = torch.export.Dim("n", min=1, max=64), torch.export.Dim("h", min=2, max=4096)
    shapes = ({0: n, 2: h}, {0: n, 2: h})
    program = torch.export.export(Loss(segops.dice_bce_loss, **options), (logits, target), dynamic_shapes=shapes)
    called = {str(node.target) for node in program.graph.nodes if "segops." in str(node.target)}
    assert called == {"segops.dice_bce_loss_statistics.default", "segops.dice_ce_loss_value.default"}
    module = reloaded(program)
    other = make_logits((3, C, 11, W), device=device), make_target((3, C, 11, W), device=device)
    for inputs in ((logits, target), other):
        assert_equal_leaves(module(*inputs), segops.dice_bce_loss(*inputs, **options))


def test_meta_and_fake_tensors_give_shapes() -> None:
    for size in ((3, 4), (9, 9)):
        logits = torch.empty(2, 5, *size, device="meta", requires_grad=True)
        target = torch.empty(2, 5, 9, 9, dtype=torch.bool, device="meta")
        loss, parts = segops.dice_bce_loss(logits, target, return_parts=True, validate="off")
        loss.backward()
        assert loss.shape == ()
        assert parts.scores.shape == (2, 5)
        assert logits.grad.shape == logits.shape
        loss = segops.dice_bce_loss(logits, target, reduction="none", dice_weight=0, validate="off")
        assert loss.shape == target.shape


def test_autocast_gives_float32(kernel_backend: str, device: str) -> None:
    logits, target = make_logits((N, C, H, W), BF16, device=device), make_target((N, C, H, W), device=device)
    with torch.autocast(device, dtype=BF16):
        assert segops.dice_bce_loss(logits, target, backend=kernel_backend).dtype == F32
    assert segops.dice_bce_loss(logits, target, backend=kernel_backend).dtype == BF16


def test_derivatives_that_are_missing_are_refused() -> None:
    logits, target = make_logits((2, 3, 4, 4), F64).requires_grad_(), make_target((2, 3, 9, 9))
    assert_further_derivatives_are_refused(segops.dice_bce_loss, logits, target)
