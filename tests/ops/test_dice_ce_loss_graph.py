"""dice_ce_loss inside graphs: torch.library.opcheck, torch.compile, torch.export."""

from __future__ import annotations

import operator
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import segops
from segops import backends
from tests.cases import make_logits, random_labels
from tests.ops.dice_ce_loss_eager import OPTIONS, fill
from tests.ops.graphs import assert_compiled_once, reloaded
from tests.ops.loss_graphs import (
    BACKWARD_LAYOUTS,
    Loss,
    assert_equal_leaves,
    assert_same_bits,
    checked,
    doubles,
)

N, C, H, W = 2, 5, 6, 7


pytestmark = pytest.mark.usefixtures("fresh_compiler")


# [logits dtype, layout, label dtype, shape, class weights?, pixel weights?, then the op's own options]
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
U8, I16, I32, I64 = torch.uint8, torch.int16, torch.int32, torch.int64
STATISTICS = {
    "plain": (F32, "contiguous", I64, (N, C, H, W), False, False, (-100, 0.0, False, True, False, False, 0)),
    "weights, parts": (F64, "channels_last", U8, (N, C, H, W), True, True, (1, 0.1, True, True, True, False, 0)),
    "map": (F32, "channels_last", I32, (N, C, H, W), True, False, (-1, 0.0, False, False, False, True, 0)),
    "map of bfloat16": (BF16, "contiguous", I16, (N, C, 9), False, True, (9, 0.2, False, False, False, True, 1)),
    "float16, 3-D": (F16, "channels_last", I64, (N, C, 2, 3, 4), False, True, (2, 0.0, True, True, True, False, 2)),
    "strided": (F32, "sliced", I64, (N, C, H, W), False, False, (-100, 0.0, False, True, False, False, 0)),
    "one pixel": (F32, "contiguous", I64, (N, 1, 1, 1), True, False, (-100, 0.0, False, True, True, False, 0)),
}  # fmt: skip


def sample_inputs(sample: tuple[Any, ...], device: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype, layout, label_dtype, shape, with_weight, with_pixel_weight, options = sample
    pixels = (shape[0], *shape[2:])
    logits = make_logits(shape, dtype, layout, device=device)
    target = random_labels(pixels, shape[1], label_dtype, options[0] if options[0] >= 0 else None, device=device)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    weight = doubles(shape[1]).to(device) if with_weight else None
    return logits, target, weight, doubles(*pixels).to(device, accumulate) if with_pixel_weight else None


@pytest.mark.parametrize("name", STATISTICS)
def test_opcheck_statistics(name: str, kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_statistics.default
    logits, *others = sample_inputs(STATISTICS[name], device)
    arguments = (logits.requires_grad_(), *others, *STATISTICS[name][-1])
    torch.library.opcheck(op, arguments)
    torch.library.opcheck(op, (logits.detach(), *arguments[1:]), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("overlap", ["per image", "none", "no images"])
@pytest.mark.parametrize("with_class_weight", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_opcheck_value(
    batch_dice: bool, with_class_weight: bool, overlap: str, kernel_backend: str, device: str
) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_value.default
    sums = {"per image": doubles(N, 3, C), "none": doubles(0), "no images": doubles(0, 3, C)}[overlap].to(device)
    if overlap == "none" and with_class_weight:
        pytest.skip("without overlap there are no classes to weight")
    torch.library.opcheck(
        op,
        (
            sums.requires_grad_(),
            doubles(2).to(device).requires_grad_(),
            doubles(C).to(device) if with_class_weight else None,
            *(2.0, 0.0, 1.0, 1.0, 1e-5, 1.0, 0.5),
            # The mean of nothing is NaN, which opcheck takes for different from itself; skipping it is 0.
            *(batch_dice, True, overlap == "no images", True),
        ),
    )


@pytest.mark.parametrize("layout", BACKWARD_LAYOUTS)
def test_opcheck_backward(layout: str, kernel_backend: str, device: str) -> None:
    """The fake must know the strides of the gradient for every layout of the logits."""
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_backward.default
    logits = make_logits((N, C, H, W), layout=layout, device=device)
    target = random_labels((N, H, W), C, device=device)
    torch.library.opcheck(
        op, (logits, target, None, None, doubles(N, 3, C).to(device), doubles(2).to(device), -100, 0.0, False)
    )


@pytest.mark.parametrize("name", STATISTICS)
def test_opcheck_backward_options(name: str, kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).dice_ce_loss_backward.default
    inputs, options = sample_inputs(STATISTICS[name], device), STATISTICS[name][-1]
    n, c = inputs[0].shape[:2]
    for grad_overlap, grad_ce in ((doubles(n, 3, c).to(device), None), (None, doubles(2).to(device))):
        torch.library.opcheck(op, (*inputs, grad_overlap, grad_ce, *options[:3]))


COMPILED = ["default", "squared", "tversky", "smoothing and weights", "skip absent", "everything"]


@pytest.mark.parametrize("name", [*COMPILED, "map"])
def test_compile_gives_the_same_bits(name: str, backend: str, device: str) -> None:
    options = {"reduction": "none", "dice_weight": 0.0} if name == "map" else OPTIONS[name]
    logits, target = make_logits((N, C, H, W), device=device), random_labels((N, H, W), C, device=device)
    options = fill(options, logits)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return segops.dice_ce_loss(x, t, backend=backend, **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    # Each is compiled anew, which takes seconds where the graph is torch's own: strides mean nothing to the reference.
    layouts = ("contiguous", "channels_last", "sliced") if backend != "reference" else ("contiguous",)
    for layout in layouts:
        for dtype in (torch.float32, torch.bfloat16):
            x = make_logits((N, C, H, W), dtype, layout, device=device)
            assert_same_bits(compiled, loss, x, target, strides=backend != "reference")


def test_inductor_with_dynamic_shapes(kernel_backend: str, device: str) -> None:
    """Forward and backward of a parameter and the loss, compiled once for all sizes; the loss is a node among others.

    No convolution: the strides of its output are constants of one size to inductor, also before torch's own losses.
    """
    gain = torch.ones(C, 1, 1, device=device, requires_grad=True)

    def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss, parts = segops.dice_ce_loss(gain * images, target, return_parts=True, backend=kernel_backend)
        return 2 * loss, parts.confusion

    inputs = (
        (torch.randn(n, C, h, w, device=device), random_labels((n, h, w), C, device=device))
        for n, h, w in ((2, 6, 7), (3, 9, 5), (4, 31, 17))
    )
    assert_compiled_once(step, gain, inputs, rtol=1e-5, atol=1e-7)


def graph_raises(call: Any, first: int, text: str, device: str) -> None:
    """A CPU operator raises by itself inside a graph; a device is asked afterwards, and knows only the first label."""
    kind, words = (RuntimeError, re.escape(text)) if device == "cpu" else (ValueError, f"the first is {first} at flat")
    with pytest.raises(kind, match=words):
        checked(call)


def test_compiled_bad_labels_raise_runtime_error_with_the_same_text(kernel_backend: str, device: str) -> None:
    logits, target = make_logits((N, C, H, W), device=device), random_labels((N, H, W), C, device=device)
    target[1, 2, 3], target[1, 4, 4] = 77, -1
    with pytest.raises(ValueError, match="2 labels outside") as eager:
        checked(lambda: segops.dice_ce_loss(logits, target, backend=kernel_backend))
    compiled = torch.compile(
        lambda x, t: segops.dice_ce_loss(x, t, backend=kernel_backend), fullgraph=True, backend="aot_eager"
    )
    for x in (logits, logits.clone().requires_grad_()):
        graph_raises(lambda: compiled(x, target), 77, str(eager.value), device)  # noqa: B023
    fine = torch.where((target < 0) | (target >= C), 0, target)
    assert torch.equal(compiled(logits, fine), segops.dice_ce_loss(logits, fine, backend=kernel_backend))


def test_compiled_bad_labels_count_and_off(kernel_backend: str, device: str) -> None:
    logits, target = make_logits((N, C, H, W), device=device), random_labels((N, H, W), C, device=device)
    target[0, 0, :3] = 99
    segops.take_bad_data_count()
    for validate, count in (("count", 3), ("off", 0)):
        compiled = torch.compile(
            lambda x, t: segops.dice_ce_loss(x, t, validate=validate, backend=kernel_backend),  # noqa: B023
            fullgraph=True,
            backend="aot_eager",
        )
        expected = segops.dice_ce_loss(logits, target, validate="off", backend=kernel_backend)
        assert torch.equal(compiled(logits, target), expected)
        assert segops.take_bad_data_count() == count


def test_compile_under_autocast(kernel_backend: str, device: str) -> None:
    logits = make_logits((N, C, H, W), torch.bfloat16, device=device)
    target = random_labels((N, H, W), C, device=device)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return segops.dice_ce_loss(x, t, backend=kernel_backend)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert compiled(logits, target).dtype == torch.float32
    assert torch.equal(compiled(logits, target), loss(logits, target))


TRIVIAL = {
    torch.ops.aten.alias.default,
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.select.int,
    torch.ops.aten.to.dtype,
}


def foreign_nodes(program: torch.export.ExportedProgram) -> list[str]:
    """Calls in a graph to something that is neither an operator of segops nor trivial."""
    calls = [node.target for node in program.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    segops_calls = [t for t in calls if isinstance(t, torch._ops.OpOverload) and t.namespace == "segops"]
    assert len(segops_calls) == 2, calls
    return [str(t) for t in calls if t not in segops_calls and t not in TRIVIAL and t is not operator.getitem]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", [{}, {"return_parts": True, "ignore_index": 255, "batch_dice": True}])
def test_export(options: dict[str, Any], strict: bool, device: str) -> None:
    logits, target = make_logits((N, C, H, W), device=device), random_labels((N, H, W), C, device=device)
    n, h = torch.export.Dim("n", min=1, max=64), torch.export.Dim("h", min=2, max=4096)
    program = torch.export.export(
        Loss(segops.dice_ce_loss, **options),
        (logits, target),
        dynamic_shapes=({0: n, 2: h}, {0: n, 1: h}),
        strict=strict,
    )
    assert not foreign_nodes(program)
    assert not foreign_nodes(program.run_decompositions())
    module = reloaded(program)
    other = make_logits((3, C, 11, W), device=device), random_labels((3, 11, W), C, device=device)
    for inputs in ((logits, target), other):
        assert_equal_leaves(module(*inputs), segops.dice_ce_loss(*inputs, **options))
    target[0, 1, 2] = 42
    graph_raises(lambda: module(logits, target), 42, "the first is 42 at [0, 1, 2]", device)


def test_export_for_training_has_a_gradient(device: str) -> None:
    logits, target = make_logits((N, C, H, W), device=device), random_labels((N, H, W), C, device=device)
    module = torch.export.export(Loss(segops.dice_ce_loss), (logits.requires_grad_(), target)).module()
    assert_same_bits(module, segops.dice_ce_loss, logits, target, strides=False)
