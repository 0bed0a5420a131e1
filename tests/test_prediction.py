from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import segops
from segops.models import SegmentationModel


class Coarse(SegmentationModel):
    """Logits at a quarter of the size, or at the size itself."""

    def __init__(self, num_classes: int, align_corners: bool = False, stride: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.align_corners = align_corners
        self.conv = nn.Conv2d(3, num_classes, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(num_classes)

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        return [self.norm(self.conv(input))]


class Returning(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(F.avg_pool2d(x, 2))


class Largest(TorchDispatchMode):
    """The most elements of a floating-point tensor that any operator returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.numel())
        return result


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [None, (11, 50), 7])
def test_labels_are_the_argmax_of_the_interpolated_logits(align_corners: bool, size: Any) -> None:
    model, x = Coarse(5, align_corners).double().eval(), images(2, 3, 37, 41, dtype=torch.float64)
    labels = segops.predict(model, x, size=size)
    shape = (37, 41) if size is None else size
    with torch.no_grad():
        logits = F.interpolate(model.coarse_logits(x)[0], shape, mode="bilinear", align_corners=align_corners)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), logits.argmax(1))


def test_more_than_256_classes_are_int64() -> None:
    model, x = Coarse(300).eval(), images(1, 3, 16, 16)
    labels = segops.predict(model, x)
    assert labels.dtype == torch.int64
    with torch.no_grad():
        assert torch.equal(labels, model(x).argmax(1))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_one_channel_is_a_mask(share: float) -> None:
    model, x = Coarse(1).double().eval(), images(2, 3, 29, 31, dtype=torch.float64)
    with torch.no_grad():
        probability = model(x)[:, 0].sigmoid()
    threshold = float(probability.quantile(share))
    mask = segops.predict(model, x, threshold=threshold)
    expected = probability > threshold
    assert mask.dtype == torch.bool
    assert 0 < int(mask.sum()) < mask.numel()
    assert torch.equal(mask, expected)


def test_full_resolution_logits_never_exist() -> None:
    model, x = Coarse(40), images(1, 3, 64, 64)
    with Largest() as largest:
        segops.predict(model, x)
    assert largest.numel <= 40 * 16 * 16
    with Largest() as largest:
        model(x)
    assert largest.numel == 40 * 64 * 64


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"aux": 0 * y, "out": y}, lambda y: [y, 0 * y]])
def test_other_modules(wrap: Any) -> None:
    x = images(2, 4, 26, 34, dtype=torch.float64)
    expected = F.interpolate(F.avg_pool2d(x, 2), (26, 34), mode="bilinear").argmax(1)
    assert torch.equal(segops.predict(Returning(wrap), x).long(), expected)


def test_every_module_s_mode_is_restored_and_no_gradient_is_kept() -> None:
    model, x = Coarse(3).train(), images(1, 3, 16, 16).requires_grad_()
    model.norm.eval()
    mean = model.norm.running_mean.clone()
    assert not segops.predict(model, x).requires_grad
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    assert torch.equal(model.norm.running_mean, mean)
    with pytest.raises(RuntimeError):
        segops.predict(model, images(1, 2, 16, 16))
    assert model.training


@pytest.mark.parametrize("tile", [8, (13, 9), (13, 64), 17])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_tiles_of_a_model_without_context_change_nothing(tile: Any, overlap: float) -> None:
    """Where tiles agree their average is what they say, so that any pixel left out or misplaced would show."""
    model, x = Returning(lambda y: F.interpolate(y, scale_factor=2)), images(2, 6, 46, 38, dtype=torch.float64)
    model.forward = lambda x: x  # type: ignore[method-assign]
    assert torch.equal(segops.predict(model, x, tile=tile, overlap=overlap).long(), x.argmax(1))


def test_overlapping_tiles_are_averaged_by_the_distance_from_their_edges() -> None:
    class FirstTile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(x.shape[-1])
            return torch.full_like(x[:, :1], float(len(self.sizes) == 1))

    # the first's weights over columns 4 .. 7 are 4, 3, 2, 1 and the second's 1, 2, 3, 4, of 5
    for logit, columns in ((0.0, 8), (0.3, 7), (0.5, 6), (0.7, 5), (0.9, 4)):
        model = FirstTile()
        threshold = 1 / (1 + math.exp(-logit))
        mask = segops.predict(model, torch.zeros(1, 1, 1, 12), tile=8, overlap=0.5, threshold=threshold)
        assert model.sizes == [8, 8]
        assert mask[0, 0].long().tolist() == [int(i < columns) for i in range(12)]


def test_a_tile_that_covers_the_image_is_no_tile() -> None:
    model, x = Coarse(5), images(1, 3, 30, 20)
    assert torch.equal(segops.predict(model, x, tile=64), segops.predict(model, x))


def test_autocast_and_channels_last() -> None:
    formats: list[bool] = []
    model, x = Coarse(5), images(2, 3, 32, 24).to(memory_format=torch.channels_last)
    model.conv.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.autocast("cpu", torch.bfloat16):
        labels = segops.predict(model, x)
    assert formats == [True]
    assert (labels == segops.predict(model, x)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"overlap": 1.0}, ValueError, r"overlap must be in \[0, 1\), got 1.0"),
        ({"threshold": 0.0}, ValueError, r"threshold must be in \(0, 1\), got 0.0"),
        ({"tile": 0}, ValueError, "at least 1"),
        ({"size": "big"}, TypeError, "size must be"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"images must be \[N, C, H, W\] with pixels, got \[3, 8, 8\]"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, TypeError, "floating-point tensor, got torch.uint8"),
        ({"model": Returning(str)}, TypeError, "must return logits .* got str"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": Coarse(2), "images": images(1, 3, 8, 8), **arguments}
    model, x = arguments.pop("model"), arguments.pop("images")
    with pytest.raises(error, match=message):
        segops.predict(model, x, **arguments)
