"""Sizes, scales and the references of nearest upsampling and upsample_argmax, against torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segops.ops.upsample_arguments import output_geometry, output_size
from segops.reference import upsample_argmax as argmax_reference
from segops.reference import upsample_nearest as nearest_reference

SCALES = (0.1, 0.3, 0.5, 0.7, 1.0, 1.1, 1.3, 1.5, 1.9, 2.0, 2.3, 2.7, 3.0, 3.3, 4.0, 7.7)


@pytest.mark.parametrize("scale", SCALES)
def test_scale_gives_the_size_and_the_elements_of_torch(scale: float) -> None:
    for extent in range(1, 70):
        if int(extent * scale) < 1:
            continue
        x = torch.arange(float(extent)).view(1, 1, 1, extent)
        expected = F.interpolate(x, scale_factor=(1.0, scale), mode="nearest")
        geometry = output_geometry("op", x.shape, None, (1.0, scale))
        assert geometry == (1, expected.shape[3], 1.0, scale)
        assert torch.equal(nearest_reference.upsample_nearest2d(x, *geometry), expected), extent


def test_size_gives_the_elements_of_torch() -> None:
    for extent in range(1, 48):
        x = torch.arange(float(extent)).view(1, 1, 1, extent)
        for out in range(1, 100):
            expected = F.interpolate(x, (1, out), mode="nearest")
            geometry = output_geometry("op", x.shape, (1, out), None)
            assert torch.equal(nearest_reference.upsample_nearest2d(x, *geometry), expected), (extent, out)


def test_one_number_stands_for_both_dimensions() -> None:
    assert output_geometry("op", (1, 1, 3, 5), 7, None) == (7, 7, 0.0, 0.0)
    assert output_geometry("op", (1, 1, 3, 5), None, 2) == (6, 10, 2.0, 2.0)
    assert output_size("op", [4, 5]) == (4, 5)


@pytest.mark.parametrize(
    ("size", "scale", "error", "message"),
    [
        (None, None, ValueError, "exactly one of size and scale_factor"),
        (3, 2.0, ValueError, "exactly one of size and scale_factor"),
        (0, None, ValueError, "size must be at least 1"),
        (2**70, None, ValueError, "size must be below 2"),
        ((3, 4, 5), None, ValueError, "got 3 elements"),
        (2.5, None, TypeError, "size must be an int or a pair of ints"),
        (True, None, TypeError, "size must be"),
        (None, "2", TypeError, "scale_factor must be a number"),
        (None, -1.0, ValueError, "above 0 and below"),
        (None, float("nan"), ValueError, "above 0 and below"),
        (None, float("inf"), ValueError, "above 0 and below"),
        (None, 0.1, ValueError, "at least one pixel"),
        (None, 2.0**30, ValueError, "output must be below 2"),
    ],
)
def test_bad_arguments(size: object, scale: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"segops.op: .*{message}"):
        output_geometry("op", (1, 1, 3, 5), size, scale)  # type: ignore[arg-type]


def test_symbolic_sizes_compile_in_one_graph() -> None:
    def upsampled(x: torch.Tensor) -> torch.Tensor:
        height, width, _, _ = output_geometry("op", x.shape, None, 1.5)
        return x.new_zeros((height, width))

    compiled = torch.compile(upsampled, fullgraph=True, dynamic=True, backend="eager")
    for extent in (3, 5, 8):
        assert compiled(torch.zeros(1, 1, extent, extent + 1)).shape == (int(extent * 1.5), int((extent + 1) * 1.5))


def test_bed_of_nails_is_a_transposed_convolution_with_one_tap() -> None:
    x = torch.randn(2, 3, 4, 5)
    kernel = torch.zeros(3, 1, 3, 3)
    kernel[:, :, 0, 0] = 1
    expected = F.conv_transpose2d(x, kernel, stride=3, groups=3)
    assert torch.equal(nearest_reference.bed_of_nails2d(x, 3), expected)


def test_argmax_takes_the_first_of_equals_and_the_first_nan() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    labels, score = argmax_reference.upsample_argmax(logits, 5, 3, False, torch.uint8)
    assert labels.dtype == torch.uint8
    assert not labels.any()
    assert torch.equal(score, torch.full((1, 5, 3), 0.25))
    logits[:, 2:] = float("nan")
    assert (argmax_reference.upsample_argmax(logits, 5, 3, False, torch.int64)[0] == 2).all()
