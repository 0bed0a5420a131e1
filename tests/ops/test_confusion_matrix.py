"""confusion_matrix on every backend, against counting pixel by pixel: counts are exact, so everything is compared for
equality."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import segops
from segops import backends
from tests.cases import LAYOUTS, VIEWS, coherent_labels, make_logits, random_labels
from tests.cpu import assert_threads_change_nothing

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
IGNORE = 250

#: Shapes of logits: one pixel, one class, prime sizes, rows longer than a vector, other ranks, many classes, none.
SHAPES: dict[str, tuple[int, ...]] = {
    "one pixel": (2, 3, 1, 1),
    "one class": (1, 1, 5, 7),
    "two classes": (3, 2, 4, 8),
    "primes": (2, 7, 13, 31),
    "blocks": (2, 19, 35, 67),
    "line": (2, 5, 37),
    "volume": (1, 4, 3, 5, 7),
    "many classes": (1, 150, 7, 9),
    "no images": (0, 3, 4, 5),
    "no pixels": (2, 3, 0, 5),
}


def counted(classes: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """By the definition: one pixel after the other."""
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for label, predicted in zip(target.flatten().tolist(), classes.flatten().tolist(), strict=True):
        if label != ignore_index:
            counts[label, predicted] += 1
    return counts


def labels_of(shape: tuple[int, ...], dtype: torch.dtype, ignore: int | None, device: str) -> Tensor:
    return random_labels((shape[0], *shape[2:]), shape[1], dtype, ignore, device=device)


@pytest.mark.parametrize("layout", [*LAYOUTS, *VIEWS])
@pytest.mark.parametrize("name", SHAPES)
def test_of_logits(name: str, layout: str, backend: str, device: str) -> None:
    shape = SHAPES[name]
    if layout == "expanded" and shape[0] == 0:
        pytest.skip("nothing to repeat")
    turn = list(SHAPES).index(name) + [*LAYOUTS, *VIEWS].index(layout)
    x = make_logits(shape, DTYPES[turn % 4], layout, device=device)
    ignore = IGNORE if turn % 3 else None
    target = labels_of(shape, LABELS[turn // 4 % 4], ignore, device)
    counts = segops.confusion_matrix(x, target, ignore_index=ignore, backend=backend)
    assert counts.dtype == torch.int64
    assert torch.equal(counts.cpu(), counted(x.double().argmax(1), target, shape[1], ignore))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_tail(layout: str, dtype: torch.dtype, kernel_backend: str, device: str) -> None:
    """Images from one pixel to more than the widest vectors and blocks, and classes around every group of them."""
    pixels = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 1025) if kernel_backend != "triton" else (3, 33)
    for turn, count in enumerate(pixels):
        for classes in (1, 3, 4, 5, 8, 9, 21):
            x = make_logits((2, classes, count), dtype, layout, device=device)
            target = labels_of(x.shape, LABELS[turn % 4], IGNORE, device)
            counts = segops.confusion_matrix(x, target, classes, IGNORE, backend=kernel_backend)
            assert torch.equal(counts.cpu(), counted(x.double().argmax(1), target, classes, IGNORE))


@pytest.mark.parametrize("dtype", LABELS, ids=str)
@pytest.mark.parametrize("shape", [(2, 37, 61), (5,), (), (1, 1, 1), (3, 0, 2), (1, 3, 5, 7, 2)], ids=str)
def test_of_label_maps(shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: str) -> None:
    for turn, other in enumerate(LABELS):
        target = random_labels(shape, 11, dtype, IGNORE if turn % 2 else None, device=device)
        predicted = random_labels(shape, 11, other, seed=2, device=device)
        counts = segops.confusion_matrix(predicted, target, 11, IGNORE if turn % 2 else None, backend=backend)
        assert torch.equal(counts.cpu(), counted(predicted, target, 11, IGNORE if turn % 2 else None))


def test_views_of_label_maps(backend: str, device: str) -> None:
    target, predicted = (random_labels((2, 9, 14), 4, seed=seed, device=device) for seed in (1, 2))
    counts = segops.confusion_matrix(predicted[:, ::2, 1::3], target[:, ::2, 1::3], 4, backend=backend)
    assert torch.equal(counts.cpu(), counted(predicted[:, ::2, 1::3], target[:, ::2, 1::3], 4))
    counts = segops.confusion_matrix(predicted.transpose(1, 2), target.transpose(1, 2), 4, backend=backend)
    assert torch.equal(counts.cpu(), counted(predicted, target, 4))
    one = predicted[:, :1, :1].expand(2, 9, 14)
    assert torch.equal(segops.confusion_matrix(one, target, 4, backend=backend).cpu(), counted(one, target, 4))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_and_special_values(dtype: torch.dtype, layout: str, backend: str, device: str) -> None:
    """The first of equals, of NaNs and of infinities; NaN wins over infinity; -0 is 0."""
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([0.0, -0.0, 1.0, nan, inf, -inf])
    generator = torch.Generator().manual_seed(5)
    x = values[torch.randint(0, 6, (2, 5, 23, 40), generator=generator)].to(dtype).to(device)
    x[:, :, 0] = -inf
    x[:, :, 1] = 0.0
    x[:, :, 2] = nan
    x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    largest = torch.where(x.isnan(), -inf, x).amax(1, keepdim=True)
    first = torch.where(x.isnan().any(1), x.isnan().int().argmax(1), (x == largest).int().argmax(1))
    assert torch.equal(first, x.float().argmax(1)), "torch has another rule"
    target = random_labels((2, 23, 40), 5, device=device)
    assert torch.equal(segops.confusion_matrix(x, target, backend=backend).cpu(), counted(first, target, 5))


def test_regions_and_large_counts(backend: str, device: str) -> None:
    """Long runs of one cell, where neighbours count at the same place."""
    shape = (2, 40, 50) if backend in ("triton", "simt") else (3, 300, 400)
    target = coherent_labels(shape, 6).to(device)
    x = torch.nn.functional.one_hot(target, 6).movedim(-1, 1).float()
    counts = segops.confusion_matrix(x, target, backend=backend)
    assert torch.equal(counts, torch.diag(target.flatten().bincount(minlength=6)))
    same = torch.zeros_like(target)
    assert segops.confusion_matrix(same, same, 6, backend=backend)[0, 0] == target.numel()


@pytest.mark.parametrize("pixels", [1, 63, 64, 65, 255, 256, 257, 700])
@pytest.mark.parametrize("dtype", LABELS, ids=str)
def test_runs_of_every_length(dtype: torch.dtype, pixels: int, device: str) -> None:
    """The CPU kernel counts runs of equal cells, or pixels where these are short; runs go on over groups of pixels."""
    for length in (1, 2, 3, 4, 5, 21, 62, 63, 64, 65, 130, 300):
        for shift in (0, 1, length // 2):
            at = torch.arange(pixels, device=device)
            target = (at // length % 7).to(dtype)
            predicted = ((at + shift) // length % 5).long()
            counts = segops.confusion_matrix(predicted, target, 7)
            assert torch.equal(counts.cpu(), counted(predicted, target, 7)), (length, shift)
            target[pixels // 2] = 9  # which the kernel takes another way for
            counts = segops.confusion_matrix(predicted, target, 7, 9)
            assert torch.equal(counts.cpu(), counted(predicted, target, 7, 9)), (length, shift)


@pytest.mark.parametrize("classes", [40, 91, 300, 600])
def test_many_classes(classes: int, kernel_backend: str, device: str) -> None:
    """Matrices too large for a worker's copies, for shared memory, and for one of each worker's own."""
    shape = (1, 5, 7) if kernel_backend in ("triton", "simt") else (2, 60, 70)
    target = random_labels(shape, classes, torch.int16, IGNORE, device=device)
    predicted = random_labels(shape, classes, torch.int32, seed=7, device=device)
    counts = segops.confusion_matrix(predicted, target, classes, IGNORE, backend=kernel_backend)
    assert torch.equal(counts.cpu(), counted(predicted, target, classes, IGNORE))
    for layout in ("contiguous", "channels_last"):
        x = make_logits((shape[0], classes, *shape[1:]), layout=layout, device=device)
        counts = segops.confusion_matrix(x, target, ignore_index=IGNORE, backend=kernel_backend)
        assert torch.equal(counts.cpu(), counted(x.argmax(1), target, classes, IGNORE))


@pytest.mark.parametrize("of_prediction", LABELS, ids=str)
@pytest.mark.parametrize("of_target", LABELS, ids=str)
def test_maps_of_many_pixels(
    of_target: torch.dtype, of_prediction: torch.dtype, kernel_backend: str, device: str
) -> None:
    """Blocks of good labels, and among them one with the largest and one with the smallest number of the type."""
    shape = (2, 12, 17) if kernel_backend in ("triton", "simt") else (2, 40, 50)
    target = random_labels(shape, 19, of_target, device=device)
    predicted = random_labels(shape, 19, of_prediction, seed=7, device=device)
    expected = counted(predicted, target, 19)
    assert torch.equal(segops.confusion_matrix(predicted, target, 19, backend=kernel_backend).cpu(), expected)
    worst = torch.iinfo(of_target).max, torch.iinfo(of_prediction).max, torch.iinfo(of_prediction).min
    target[0, -1, 3] = worst[0]
    counts = segops.confusion_matrix(predicted, target, 19, worst[0], backend=kernel_backend)
    assert torch.equal(counts.cpu(), counted(predicted, target, 19, worst[0]))
    predicted[1, 7, 9] = worst[1]
    predicted[1, 9, 0] = worst[2]
    with pytest.raises(ValueError, match=r"target has 1 label outside .* at \[0, \d+, 3\]"):
        segops.confusion_matrix(predicted, target, 19, backend=kernel_backend)
    number = 1 if worst[2] == 0 else 2  # zero is a class
    with pytest.raises(ValueError, match=rf"prediction has {number} labels? outside .* at \[1, 7, 9\]"):
        segops.confusion_matrix(predicted, target, 19, worst[0], backend=kernel_backend)


@pytest.mark.parametrize("ignore", [0, 2, -1, -100, 255, 1 << 40])
def test_ignore_index(ignore: int, backend: str, device: str) -> None:
    """Among the classes or not, and whatever is predicted there."""
    dtype = torch.int64 if not 0 <= ignore <= 255 else torch.uint8
    target = random_labels((2, 9, 11), 4, dtype, ignore, 0.3, device=device)
    predicted = random_labels((2, 9, 11), 4, seed=3, device=device)
    expected = counted(predicted, target, 4, ignore)
    predicted[target == ignore] = 77
    assert torch.equal(segops.confusion_matrix(predicted, target, 4, ignore, backend=backend).cpu(), expected)
    everything = torch.full_like(target, ignore)
    assert not segops.confusion_matrix(predicted, everything, 4, ignore, backend=backend).any()
    x = make_logits((2, 4, 9, 11), device=device)
    x.movedim(1, -1)[target == ignore] = float("nan")
    counts = segops.confusion_matrix(x, target, ignore_index=ignore, backend=backend)
    assert torch.equal(counts.cpu(), counted(x.argmax(1), target, 4, ignore))


#: Places in the target, places in the prediction, ignore_index, and the words of the error.
BAD: dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]], int | None, str]] = {
    "label": ([(1, 2, 3, 5)], [], None, "target has 1 label outside [0, 5); the first is 5 at [1, 2, 3]"),
    "labels": (
        [(1, 5, 6, 1000), (0, 3, 2, 77), (0, 3, 3, -5)],
        [(0, 3, 2, 9)],
        -1,
        "target has 3 labels outside [0, 5) that are not ignore_index (-1); the first is 77 at [0, 3, 2]",
    ),
    "huge": ([(1, 0, 0, 1 << 62)], [], -100, f"the first is {1 << 62} at [1, 0, 0]"),
    "wraps": ([(0, 0, 1, 1 << 32)], [], None, f"the first is {1 << 32} at [0, 0, 1]"),
    "prediction": ([], [(0, 0, 0, 5)], 255, "prediction has 1 label outside [0, 5); the first is 5 at [0, 0, 0]"),
    "predictions": (
        [],
        [(1, 5, 6, -1), (1, 5, 5, 99)],
        255,
        "prediction has 2 labels outside [0, 5); the first is 99 at [1, 5, 5]",
    ),
    "both": ([(1, 1, 1, 6)], [(0, 0, 0, 7)], None, "target has 1 label outside [0, 5); the first is 6 at [1, 1, 1]"),
}


def reported(prediction: Tensor, target: Tensor, classes: int | None, ignore: int | None, backend: str) -> None:
    segops.confusion_matrix(prediction, target, classes, ignore, backend=backend)
    segops.check_errors()


@pytest.mark.parametrize("name", BAD)
def test_bad_data(name: str, backend: str, device: str) -> None:
    bad_labels, bad_predictions, ignore, words = BAD[name]
    target, predicted = (random_labels((2, 6, 7), 5, seed=seed, device=device) for seed in (1, 2))
    for values, places in ((target, bad_labels), (predicted, bad_predictions)):
        for *place, value in places:
            values[tuple(place)] = value
    with pytest.raises(ValueError, match=re.escape("segops.confusion_matrix: ") + ".*" + re.escape(words) + "$"):
        reported(predicted, target, 5, ignore, backend)
    if bad_labels:
        with pytest.raises(ValueError, match=re.escape(words) + "$"):
            reported(make_logits((2, 5, 6, 7), device=device), target, None, ignore, backend)


def test_bad_data_counts_nowhere(kernel_backend: str, device: str) -> None:
    """The operator itself only records it; bad labels hide what is predicted for them."""
    op = getattr(torch.ops, backends.namespace(kernel_backend)).confusion_matrix
    target, predicted = (random_labels((1, 40, 90), 5, seed=seed, device=device) for seed in (1, 2))
    target[0, 30, 5], target[0, 3, 80], predicted[0, 3, 80] = 5, -7, 9
    predicted[0, 20, 20], predicted[0, 1, 1] = 6, -2
    counts, bad_labels, bad_predictions = op(predicted, target, 5, False, 0, 0)
    keep = ((target >= 0) & (target < 5) & (predicted >= 0) & (predicted < 5)).cpu()
    assert torch.equal(counts.cpu(), counted(predicted.cpu()[keep], target.cpu()[keep], 5))
    assert bad_labels.tolist() == [2, 3 * 90 + 80, -7]
    assert bad_predictions.tolist() == [2, 91, -2]
    assert op(make_logits((1, 5, 40, 90), device=device), target, 5, False, 0, 0)[2].numel() == 0


def test_bad_data_in_a_graph_raises_there(device: str) -> None:
    compiled = torch.compile(lambda p, t: segops.confusion_matrix(p, t, 3) + 1, fullgraph=True, backend="aot_eager")

    def step(prediction: Tensor, target: Tensor) -> None:
        compiled(prediction, target)
        segops.check_errors()

    target = torch.zeros(1, 2, 2, dtype=torch.int64, device=device)
    with pytest.raises((RuntimeError, ValueError), match=r"prediction has 4 labels|out of range inside a graph"):
        step(target + 3, target)


def test_number_of_threads_changes_nothing() -> None:
    x = make_logits((3, 19, 140, 250), torch.bfloat16)
    target = random_labels((3, 140, 250), 19, torch.uint8)
    target[2, 100, 3] = 44
    assert_threads_change_nothing(lambda: torch.ops.segops.confusion_matrix(x, target, 19, False, 0, 0), 1, 2, 3, 7)


def test_results_are_all_written(kernel_backend: str, poisoned_memory: None, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).confusion_matrix
    empty = torch.zeros(0, 3, 4, dtype=torch.uint8, device=device)
    for prediction in (empty, torch.zeros(0, 5, 3, 4, device=device)):
        assert not any(result.any() for result in op(prediction, empty, 5, True, 255, 0))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_opcheck(layout: str, kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).confusion_matrix.default
    for dtype in (torch.float32, torch.bfloat16):
        x = make_logits((2, 3, 4, 5), dtype, layout, device=device)
        torch.library.opcheck(op, (x, labels_of(x.shape, torch.uint8, None, device), 3, True, 255, 0))
    predicted = random_labels((2, 4, 5), 3, seed=4, device=device)
    torch.library.opcheck(op, (predicted, predicted.to(torch.int16), 3, False, 0, 0))


def test_compiled_with_dynamic_shapes(fresh_compiler: None, kernel_backend: str, device: str) -> None:
    """Once for all sizes and numbers of classes."""

    def step(x: Tensor, target: Tensor) -> Tensor:
        return segops.confusion_matrix(2 * x, target, ignore_index=255, backend=kernel_backend) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n, c, h, w in ((2, 3, 4, 5), (3, 5, 6, 9), (4, 7, 7, 3)):
        x = make_logits((n, c, h, w), device=device)
        target = labels_of(x.shape, torch.uint8, 255, device)
        assert torch.equal(compiled(x, target), step(x, target))
        torch.compiler.set_stance("fail_on_recompile")


def test_fake_and_meta_tensors_give_shapes() -> None:
    x, target = make_logits((2, 3, 4, 5)), random_labels((2, 4, 5), 3)
    with FakeTensorMode() as mode:
        fake = [
            segops.confusion_matrix(mode.from_tensor(x), mode.from_tensor(target)),
            segops.confusion_matrix(mode.from_tensor(target), mode.from_tensor(target), 3),
        ]
    meta = segops.confusion_matrix(x.to("meta"), target.to("meta"))
    for counts in (*fake, meta):
        assert (counts.shape, counts.dtype) == ((3, 3), torch.int64)


def test_no_gradient(backend: str, device: str) -> None:
    x = make_logits((1, 3, 4, 5), device=device).requires_grad_()
    assert not segops.confusion_matrix(x, random_labels((1, 4, 5), 3, device=device), backend=backend).requires_grad


@pytest.mark.parametrize(
    ("prediction", "target", "options", "error", "words"),
    [
        ([1], 0, {}, TypeError, "prediction must be a tensor, got list"),
        ((2, 3, 4), "0", {}, TypeError, "target must be a tensor, got str"),
        (torch.zeros(2, 2, dtype=torch.bool), (2, 2), {}, TypeError, "int32 or int64), got bool"),
        ((2, 3, 4), torch.zeros(2, 4), {}, TypeError, "target must be uint8, int16, int32 or int64, got float32"),
        ((2, 3, 4), torch.zeros(2, 4).to_sparse().long(), {}, TypeError, "target must be a dense tensor"),
        ((2, 3, 4), (2, 4), {"num_classes": 3.0}, TypeError, "num_classes must be an int or None, got float"),
        ((2, 3, 4), (2, 4), {"ignore_index": True}, TypeError, "ignore_index must be an int or None, got bool"),
        ((2, 3, 4), (2, 4), {"ignore_index": 1 << 63}, ValueError, "ignore_index must be an int of 64 bits"),
        ((2, 3), (2,), {}, ValueError, "logits must be [N, C, *spatial], got [2, 3]"),
        ((2, 0, 3), (2, 3), {}, ValueError, "logits must have at least one class, got [2, 0, 3]"),
        ((2, 3, 4), (2, 4), {"num_classes": 4}, ValueError, "num_classes must be 3 for logits [2, 3, 4], got 4"),
        (torch.zeros(2, dtype=torch.long), (2,), {}, ValueError, "num_classes must be given"),
        (torch.zeros(2, dtype=torch.long), (2,), {"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ((2, 3, 4), (2, 5), {}, ValueError, "target must be [2, 4] for prediction [2, 3, 4], got [2, 5]"),
        ((2, 3, 4), torch.zeros(2, 4, dtype=torch.long, device="meta"), {}, ValueError, "like prediction, got meta"),
    ],
)
def test_bad_arguments(
    prediction: Any, target: Any, options: dict[str, Any], error: type[Exception], words: str, backend: str, device: str
) -> None:
    def tensor(given: Any, dtype: torch.dtype) -> Any:
        if isinstance(given, tuple):
            return torch.zeros(given, dtype=dtype, device=device)
        return given.to(device) if isinstance(given, Tensor) and not given.is_meta else given

    with pytest.raises(error, match=re.escape("segops.confusion_matrix: ") + ".*" + re.escape(words)):
        segops.confusion_matrix(
            tensor(prediction, torch.float32), tensor(target, torch.int64), backend=backend, **options
        )


def test_operator_refuses_what_would_be_unsafe(kernel_backend: str, device: str) -> None:
    op = getattr(torch.ops, backends.namespace(kernel_backend)).confusion_matrix
    x, target = torch.zeros(2, 3, 4, device=device), torch.zeros(2, 4, dtype=torch.int64, device=device)
    for prediction, labels, classes in (
        (x, target, 4),
        (x, target[:, :3], 3),
        (x, target.float(), 3),
        (target[:1], target, 3),
        (target, target, 0),
    ):
        with pytest.raises(RuntimeError):
            op(prediction, labels, classes, False, 0, 0)
