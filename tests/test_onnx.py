"""Exported graphs in ONNX Runtime against segops itself: both only move elements, and agree exactly."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segops
from tests.cases import make_logits

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Window = dict[str, Any]
WINDOWS: list[Window] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
]
DYNAMIC = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def _session(model: nn.Module, args: tuple[Tensor, ...], dynamic: bool) -> Any:
    shapes: Any = tuple(DYNAMIC for _ in args) if dynamic else None
    if dynamic and isinstance(model, Function):
        shapes = (shapes,)
    program = segops.onnx.export(model, args, dynamic_shapes=shapes, verbose=False)
    assert {node.domain for node in program.model.graph} <= {""}
    data = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def _run(session: Any, *args: Tensor) -> list[Tensor]:
    names = [put.name for put in session.get_inputs()]
    feed = {name: x.contiguous().numpy() for name, x in zip(names, args, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feed)]


def _equal(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and _same(found, expected)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)


class Unpool(nn.Module):
    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, input: Tensor, indices: Tensor, like: Tensor) -> Tensor:
        return segops.max_unpool2d(input, indices, **self.window, output_size=like.shape[-2:])


def _odd(shape: tuple[int, ...]) -> Tensor:
    """Ties, NaN and infinities."""
    x = make_logits(shape).round()
    x[0, 0, 1, :3] = float("nan")
    x[0, -1, :4, :4] = -torch.inf
    return x


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pooling_of_any_size(window: Window, ceil_mode: bool) -> None:
    model = segops.nn.MaxPool2d(**window, ceil_mode=ceil_mode, return_indices=True)
    session = _session(model, (_odd((2, 3, 9, 12)),), dynamic=True)
    for shape in ((2, 3, 9, 12), (3, 3, 8, 11), (1, 3, 7, 6), (2, 3, 10, 13)):
        x = _odd(shape)
        for found, expected in zip(_run(session, x), model(x), strict=True):
            assert _equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.int16, torch.int64], ids=str)
def test_pooling_and_unpooling_of_other_types(dtype: torch.dtype) -> None:
    class ThereAndBack(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pooled, indices = segops.max_pool2d(x, 3, 2, 1)
            return segops.max_unpool2d(pooled, indices, 3, 2, 1, output_size=x.shape[-2:])

    x = (make_logits((2, 3, 9, 12)) + 20).round().to(dtype)
    (found,) = _run(_session(ThereAndBack(), (x,), dynamic=False), x)
    assert _equal(found, ThereAndBack()(x))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("local", [True, False])
def test_unpooling_of_any_size(window: Window, local: bool) -> None:
    """Arbitrary indices in their windows, overlapping ones among them, with values that all differ."""
    model = Unpool(window)

    def arguments(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        image = make_logits(shape)
        pooled, indices = segops.max_pool2d(image, **window)
        if not local:
            return pooled, torch.randint(0, shape[2] * shape[3], pooled.shape), image
        taps = torch.randint(0, 256, (64, *pooled.shape)).to(torch.uint8)
        for tap in taps:  # what points into the image; the rest stays as pooling found it
            flat = segops.reference.max_unpool.local_to_flat(
                tap, *shape[2:], segops.ops.max_unpool.arguments.window_of("test", **_all(window))
            )
            indices = torch.where(flat >= 0, tap, indices)
        return torch.arange(pooled.numel(), dtype=torch.float32).view(pooled.shape) + 1, indices, image

    session = _session(model, arguments((2, 3, 9, 12)), dynamic=True)
    for shape in ((2, 3, 9, 12), (1, 3, 8, 11), (3, 3, 10, 7)):
        args = arguments(shape)
        (found,) = _run(session, *args)
        assert _equal(found, model(*args))


def _all(window: Window) -> Window:
    return {"stride": None, "padding": 0, "dilation": 1, **window}


@pytest.mark.parametrize("local", [True, False])
def test_empty_batch(local: bool) -> None:
    pool = segops.nn.MaxPool2d(2, return_indices=True)
    x = _odd((2, 3, 4, 6))
    y, indices = pool(x)
    index = indices if local else segops.local_to_flat_indices(indices, x.shape[2:], 2)
    unpooling = _session(Unpool({"kernel_size": 2}), (y, index, x), dynamic=True)
    (found,) = _run(unpooling, y[:0], index[:0], x[:0])
    assert _equal(found, x[:0])
    assert all(map(_equal, _run(_session(pool, (x,), dynamic=True), x[:0]), (y[:0], indices[:0])))


@pytest.mark.parametrize("local", [True, False])
def test_corrupt_indices_point_nowhere(local: bool) -> None:
    model = Unpool({"kernel_size": 2})
    image = make_logits((1, 2, 6, 8))
    pooled, indices = segops.max_pool2d(image, 2) if local else nn.functional.max_pool2d(image, 2, return_indices=True)
    session = _session(model, (pooled, indices, image), dynamic=False)
    expected = model(pooled, indices, image)
    for i, bad in enumerate((4, 255) if local else (-1, 48, 2**62, -(2**63))):
        row, column = divmod(i, 4)
        indices[0, 1, row, column] = bad
        expected[0, 1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 0
    assert _equal(_run(session, pooled, indices, image)[0], expected)
    with pytest.raises(ValueError, match="indices"):
        model(pooled, indices, image)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: segops.upsample_nearest2d(x, (45, 129)),  # pairs of sizes at which float32 ratios matter
        lambda x: segops.upsample_nearest2d(x, scale_factor=(2, 1.7)),
        lambda x: segops.bed_of_nails2d(x, 3),
    ],
    ids=["nearest, sizes", "nearest, scales", "nails"],
)
def test_pixels_are_moved_exactly(function: Callable[[Tensor], Tensor]) -> None:
    session = _session(Function(function).eval(), (_odd((2, 3, 15, 43)),), dynamic=True)
    for shape in ((2, 3, 15, 43), (1, 3, 7, 5)):
        x = _odd(shape)
        assert _equal(_run(session, x)[0], function(x))


#: Of interpolated values of about 1: runtimes compute coordinates in float32.
COORDINATES = 1e-5


@pytest.mark.parametrize(
    "function",
    [
        lambda x, _: segops.upsample_bilinear2d(x, (20, 17)),
        lambda x, _: segops.upsample_bilinear2d(x, scale_factor=(2.3, 0.7)),
        lambda x, skip: segops.upsample_cat(x, skip, align_corners=True),
        lambda x, skip: segops.upsample_cat(x, skip, order="up_first"),
    ],
    ids=["sizes", "scales", "cat, corners", "cat"],
)
def test_interpolation_of_any_size(function: Callable[..., Tensor]) -> None:
    def arguments(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.rand(shape), torch.rand(shape[0], 2, 2 * shape[2] + 1, 3 * shape[3])

    session = _session(Function(function).eval(), arguments(2, 3, 9, 12), dynamic=True)
    for shape in ((2, 3, 9, 12), (1, 3, 10, 7)):
        args = arguments(*shape)
        feed = args[: len(session.get_inputs())]
        torch.testing.assert_close(_run(session, *feed)[0], function(*args), rtol=0, atol=COORDINATES)


def test_labels_and_scores_of_any_size() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return segops.upsample_argmax(x, (40, 33), dtype=torch.int32, return_score=True)

    session = _session(Function(function).eval(), (torch.rand(2, 5, 9, 12),), dynamic=True)
    for shape in ((2, 5, 9, 12), (1, 5, 10, 7)):
        x = torch.rand(shape)
        x[0, 3, 2, 3] = x[0, 1, 2, 3] = float("nan")
        labels, score = _run(session, x)
        assert _equal(labels, function(x)[0])
        torch.testing.assert_close(score, function(x)[1], rtol=0, atol=COORDINATES, equal_nan=True)


ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "sigmoid", "prelu")


def test_convolution_and_what_follows_it() -> None:
    weight, vectors = torch.rand(4, 3, 3, 2) - 0.5, torch.rand(4, 4) - 0.5

    def function(x: Tensor, residual: Tensor) -> list[Tensor]:
        bias, scale, shift, slope = vectors
        options = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "scale": scale, "shift": shift}
        return [
            segops.dilated_conv2d(
                x, weight, bias, **options, residual=residual, activation=name, slope=slope if name == "prelu" else None
            )
            for name in ACTIVATIONS
        ] + [segops.dilated_conv2d(x.half(), weight.half(), padding=1).float()]

    def arguments(n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        return torch.rand(n, 3, h, w), torch.rand(n, 4, h, w // 2 + 1)

    session = _session(Function(function).eval(), arguments(2, 9, 12), dynamic=True)
    for shape in ((2, 9, 12), (1, 6, 7)):
        args = arguments(*shape)
        *single, half = zip(_run(session, *args), function(*args), strict=True)
        for found, expected in single:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*half, rtol=1e-3, atol=1e-3)


class SegNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(c, d, 3, padding=1) for c, d in itertools.pairwise((3, 4, 5)))
        self.up = nn.ModuleList(nn.Conv2d(c, d, 3, padding=1) for c, d in itertools.pairwise((5, 4, 2)))
        self.pool = segops.nn.MaxPool2d(2, return_indices=True, ceil_mode=True)
        self.unpool = segops.nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for convolution in self.down:
            x = convolution(x).relu()
            size = x.shape[-2:]
            x, indices = self.pool(x)
            kept.append((indices, size))
        for convolution in self.up:
            indices, size = kept.pop()
            x = convolution(self.unpool(x, indices, size))
        return x


def test_encoder_decoder(tmp_path: Any) -> None:
    model = SegNet().eval()
    path = tmp_path / "segnet.onnx"
    segops.onnx.export(model, (make_logits((2, 3, 13, 18)),), path, dynamic_shapes=(DYNAMIC,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 13, 18), (1, 3, 21, 11)):
        x = make_logits(shape)
        with torch.no_grad():
            torch.testing.assert_close(_run(session, x)[0], model(x))


def test_without_onnxscript_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['onnxscript'] = None\nimport segops.onnx\nsegops.onnx.translation_table()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'segops[onnx]'" in done.stderr
