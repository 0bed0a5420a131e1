"""The Triton kernels of dice_ce_loss in the interpreter, against the reference in float64.

What the tests of the operator leave to others: class counts on both sides of every kernel's limits, images that are cut
into several programs, and wild logits in the kernel that sweeps over many classes.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from segops import errors
from segops.reference import dice_ce_loss as reference
from segops.triton import dice_ce_loss as op
from segops.triton import interpreting
from tests.cases import LAYOUTS, VIEWS, make_logits, random_labels
from tests.ops.dice_ce_loss_eager import OPTIONS, eager, fill
from tests.tolerances import compare, outcome
from tests.triton.direct import loss

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INF, NAN = float("inf"), float("nan")

pytestmark = pytest.mark.skipif(not interpreting(), reason="kernels are compiled: they need CUDA tensors")


def check(logits: Tensor, target: Tensor, **options: Any) -> None:
    compare(
        functools.partial(loss, target=target, **options),
        functools.partial(eager, target=target, **options),
        logits,
        gradient_scale=1 / max(1, target.numel()),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, dtype: torch.dtype) -> None:
    """In every layout in turn."""
    layouts = (*LAYOUTS, *VIEWS)
    turn = list(OPTIONS).index(name) + DTYPES.index(dtype)
    logits = make_logits((2, 5, 7, 9), dtype, layouts[turn % len(layouts)])
    options = fill(OPTIONS[name], logits)
    target = random_labels((2, 7, 9), 5, ignore_index=options.get("ignore_index"))
    check(logits, target, **options)


@pytest.mark.parametrize("name", ["default", "everything", "smoothing and weights", "squared", "only cross-entropy"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_of_the_sweep(name: str, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        logits = make_logits((2, 70, 3, 5), dtype, layout)
        options = fill(OPTIONS[name], logits)
        check(logits, random_labels((2, 3, 5), 70, ignore_index=options.get("ignore_index")), **options)


@pytest.mark.parametrize("classes", [1, 2, 3, 17, 33, 64, 65, 128, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_class_counts(classes: int, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        logits = make_logits((2, classes, 5, 7), dtype, layout)
        check(logits, random_labels((2, 5, 7), classes, ignore_index=255), ignore_index=255)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 1), (1, 1, 127), (2, 13, 11), (1, 5, 7, 3), (1, 2, 1, 1, 5)], ids=str
)
def test_shapes(shape: tuple[int, ...]) -> None:
    for layout in ("contiguous", "channels_last"):
        check(make_logits((shape[0], 4, *shape[1:]), layout=layout), random_labels(shape, 4, ignore_index=-100))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("classes", "pixels"), [(2, 9000), (19, 2200), (19, 4097), (40, 1100), (70, 300)])
def test_images_of_several_programs(classes: int, pixels: int, layout: str) -> None:
    """With full and partial programs, and within them several tiles."""
    cut = op.plan(classes, pixels, 4, layout == "channels_last")
    assert cut.chunks > 1
    assert cut.steps > 1 or not cut.is_tile
    target = random_labels((2, pixels), classes, ignore_index=-100)
    check(make_logits((2, classes, pixels), layout=layout), target)
    check(make_logits((2, classes, pixels), layout=layout), target, reduction="none", dice_weight=0.0)


@pytest.mark.parametrize(("dtype", "ignore_index"), [
    (torch.uint8, 255), (torch.uint8, -1), (torch.uint8, 256), (torch.int16, -100), (torch.int16, 1 << 20),
    (torch.int32, -(1 << 31)), (torch.int32, 1 << 40), (torch.int64, (1 << 63) - 1), (torch.int64, -(1 << 63)),
])  # fmt: skip
def test_label_dtypes(dtype: torch.dtype, ignore_index: int) -> None:
    """An ignore_index that the labels cannot have ignores nothing."""
    info = torch.iinfo(dtype)
    possible = ignore_index if info.min <= ignore_index <= info.max else None
    for classes in (5, 70):
        target = random_labels((2, 6, 7), classes, dtype, ignore_index=possible)
        check(make_logits((2, classes, 6, 7)), target, ignore_index=ignore_index)


def statistics(logits: Tensor, target: Tensor, on_bad: int = errors.RECORD, ignore_index: int = -100) -> Any:
    return op.statistics(logits, target, None, None, ignore_index, 0.0, False, True, True, True, on_bad)


@pytest.mark.parametrize("classes", [5, 70])
def test_bad_labels(classes: int) -> None:
    h, w = (40, 61) if classes == 5 else (10, 13)
    logits, target = make_logits((3, classes, h, w)), random_labels((3, h, w), classes)
    clean = target.clone()
    for position, label in (((2, h - 1, w - 1), 1 << 40), ((1, 5, 9), classes), ((1, 5, 10), -1), ((2, 0, 0), -100)):
        target[position] = label
        clean[position] = -100
    results = statistics(logits, target)
    assert results[4].tolist() == [3, (h + 5) * w + 9, classes]
    assert statistics(logits, clean)[4].tolist() == [0, 0, 0]
    for found, expected in zip(results[:4], statistics(logits, clean)[:4], strict=True):
        assert torch.equal(found, expected)
    errors.take_bad_data_count()
    statistics(logits, target, errors.COUNT)
    assert errors.take_bad_data_count() == 3
    with pytest.raises(RuntimeError, match=rf"3 labels .* the first is {classes} at \[1, 5, 9\]"):
        statistics(logits, target, errors.RAISE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 5, 40, 70])
def test_confusion(classes: int, dtype: torch.dtype) -> None:
    """Ties go to the first class, NaN counts as the largest: counted in registers, one by one, and in the sweep."""
    logits = make_logits((2, classes, 13, 17), dtype).mul_(0.5).round_()
    logits[0, classes // 2, :4], logits[0, classes - 1, 2:6] = NAN, NAN
    logits[1, :, 0], logits[1, -1, 1], logits[1, classes // 3, 1] = -INF, INF, INF
    logits[1, :, 2] = 0.0
    logits[1, ::2, 2] = -0.0
    target = random_labels((2, 13, 17), classes, ignore_index=255)
    assert torch.equal(statistics(logits, target, ignore_index=255)[3], reference.confusion(logits, target, 255))


def first_classes_masked(x: Tensor) -> None:
    x[0, :40] = -INF


def all_masked_but_one(x: Tensor) -> None:
    x[0, :, 1] = -INF
    x[0, 69, 1] = 2.0


def one_pixel_masked(x: Tensor) -> None:
    x[0, :, 1, 1] = -INF


def infinity(x: Tensor) -> None:
    x[1, 33, 2, 2] = INF


def nan_early(x: Tensor) -> None:
    x[1, 0, 2, 2] = NAN


def nan_late(x: Tensor) -> None:
    x[1, 69, 2, 2] = NAN


def rising(x: Tensor) -> None:
    x += torch.arange(70, dtype=x.dtype).view(70, 1, 1) * 20


def falling(x: Tensor) -> None:
    x -= torch.arange(70, dtype=x.dtype).view(70, 1, 1) * 20


def large(x: Tensor) -> None:
    x *= 3000


@pytest.mark.parametrize(
    "extreme",
    [first_classes_masked, all_masked_but_one, one_pixel_masked, infinity, nan_early, nan_late, rising, falling, large],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", ["default", "squared", "smoothing", "only cross-entropy"])
def test_wild_logits_in_the_sweep(extreme: Any, name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = make_logits((2, 70, 4, 5), dtype)
        extreme(logits)
        target = random_labels((2, 4, 5), 30) + 40
        target[0, 0, 0] = -100
        check(logits, target, **OPTIONS[name])


@pytest.mark.parametrize("classes", [5, 70])
def test_garbage_at_ignored_pixels(classes: int) -> None:
    target = random_labels((2, 5, 9), classes, ignore_index=-100, ignored=0.4)
    ignored = target == -100
    clean = make_logits((2, classes, 5, 9))
    dirty = clean.clone()
    dirty.movedim(1, -1)[ignored] = NAN
    options = {"label_smoothing": 0.1, "pixel_weight": torch.where(ignored, NAN, 1.0)}
    theirs = outcome(functools.partial(loss, target=target, label_smoothing=0.1), clean)
    ours = outcome(functools.partial(loss, target=target, **options), dirty)
    assert torch.equal(ours.value, theirs.value)
    assert torch.equal(ours.gradient, theirs.gradient)
    assert not ours.gradient.movedim(1, -1)[ignored].any()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("classes", [3, 70])
def test_empty(classes: int, shape: tuple[int, ...]) -> None:
    logits, target = make_logits((shape[0], classes, *shape[1:])), random_labels(shape, classes)
    sums, ce, ce_map, confusion, bad = statistics(logits, target)
    assert sums.shape == (shape[0], 3, classes)
    assert ce_map.shape == shape
    assert not any(t.any() for t in (sums, ce, confusion, bad))
    assert op.backward(logits, target, None, None, sums, ce, -100, 0.0, False).shape == logits.shape


def test_sums_of_many_programs() -> None:
    """Of images whose programs and entries fill no block exactly; a program without bad labels has no position."""
    images, chunks, classes = 2, 300, 13
    partial = torch.randn(images * chunks, 3, classes)
    partial_ce, partial_bad = torch.randn(images * chunks, 2), torch.zeros(images * chunks, 2, dtype=torch.int64)
    partial_bad[:, 1] = torch.arange(images * chunks)
    partial_bad[517], partial_bad[518], partial_bad[599] = torch.tensor([[2, 530], [1, 540], [4, 599]])
    target = torch.arange(1000, dtype=torch.int16) + 1000
    overlap, ce, bad = torch.empty(images, 3, classes).double(), torch.empty(2).double(), torch.empty(3).long()
    groups, blocks = 3, {"BLOCK_R": 32, "BLOCK_E": 16, "BLOCK": 512}
    inputs = (partial, partial_ce, partial_bad, target, overlap, ce, bad)
    sizes = (3 * classes, chunks, images * chunks, groups)
    op.launch(op.dice_ce_loss_sums_kernel, images * groups + 1, partial, *inputs, *sizes, **blocks)
    truth = partial.double().view(images, chunks, 3, classes).sum(1)
    torch.testing.assert_close(overlap, truth, rtol=1e-14, atol=1e-13)
    torch.testing.assert_close(ce, partial_ce.double().sum(0), rtol=1e-14, atol=1e-13)
    assert bad.tolist() == [7, 530, 1530]


def test_sums_do_not_depend_on_what_memory_held(poisoned_memory: None) -> None:
    for classes in (5, 70):
        logits, target = make_logits((2, classes, 9, 11)), random_labels((2, 9, 11), classes, ignore_index=-100)
        sums, ce, ce_map, *_ = statistics(logits, target)
        truth = reference.overlap_sums(logits.double(), target, -100, False)
        torch.testing.assert_close(sums, torch.stack(truth, 1), rtol=1e-5, atol=1e-5)
        assert all(t.isfinite().all() for t in (sums, ce, ce_map))


def test_segops_does_not_import_triton() -> None:
    """Importing Triton takes as long as everything else."""
    script = "import sys, segops, segops.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_reasons() -> None:
    """CPU tensors need the interpreter, and the interpreter must be asked for before Triton is imported."""
    script = "from segops import triton as t; import os; print(t.reason_unavailable('cpu')); import triton\n"
    script += "os.environ['TRITON_INTERPRET'] = '1'; print(t.reason_unavailable('cpu'), t.reason_unavailable('xpu'))"
    done = subprocess.run(
        ["env", "-u", "TRITON_INTERPRET", sys.executable, "-c", script], capture_output=True, text=True
    )
    before, after = done.stdout.splitlines()
    assert before == "Triton runs CPU tensors only with TRITON_INTERPRET=1 set before it is imported"
    assert after == f"{before} segops has no Triton kernels for device type 'xpu'"
