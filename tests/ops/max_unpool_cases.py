"""Windows for the tests of max_pool2d and max_unpool2d, and an oracle that shares nothing with segops."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Case(NamedTuple):
    shape: tuple[int, ...]
    kernel: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What every function takes after its tensors and sizes."""
        return self.kernel, self.stride, self.padding, self.dilation

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """torch's own pooling."""
        return F.max_pool2d(x, *self.sizes, self.ceil_mode, return_indices=True)


CASES: dict[str, Case] = {
    "2x2": Case((2, 3, 6, 16), 2),
    "2x2, odd": Case((1, 5, 7, 13), 2),
    "2x2, odd, ceil": Case((2, 3, 7, 35), 2, ceil_mode=True),
    "2x2, wide": Case((1, 2, 4, 67), 2),
    "2x2, many channels": Case((1, 19, 5, 4), 2),
    "2x2, padded": Case((1, 3, 5, 8), 2, 2, 1),
    "2x2, padded, ceil": Case((1, 3, 5, 8), 2, 2, 1, 1, True),
    "3x3 s2, a ResNet's": Case((2, 3, 9, 12), 3, 2, 1),
    "3x3 s2, ceil": Case((1, 2, 8, 11), 3, 2, 0, 1, True),
    "3x3 s1": Case((1, 4, 6, 7), 3, 1, 1),
    "stride above kernel": Case((1, 3, 9, 14), 2, 3),
    "stride above kernel, ceil": Case((1, 3, 8, 11), (1, 2), (3, 4), 0, 1, True),
    "dilated": Case((1, 3, 9, 11), 3, 1, 1, 2),
    "dilated past the image": Case((1, 2, 2, 5), 2, 1, 1, (2, 2)),
    "uneven": Case((2, 2, 9, 10), (3, 2), (2, 3), (1, 0), (2, 1), True),
    "kernel of one": Case((1, 3, 4, 5), 1),
    "256 taps": Case((1, 2, 17, 18), 16, 5, 8),
    "one window": Case((1, 3, 4, 5), (4, 5)),
    "one pixel, ceil": Case((2, 3, 1, 1), 2, 2, 0, 1, True),
    "no images": Case((0, 3, 6, 8), 2),
}


def taps_of(case: Case, h: int, w: int, height: int, width: int) -> Tensor:
    """int64 [h, w, taps]: y * width + x of each tap, -1 outside the image. By the definition, number by number."""
    (kernel_h, kernel_w), (pad_h, pad_w), (step_h, step_w) = map(_pair, (case.kernel, case.padding, case.dilation))
    stride_h, stride_w = _pair(case.kernel if case.stride is None else case.stride)
    table = torch.full((h, w, kernel_h * kernel_w), -1)
    for i in range(h):
        for j in range(w):
            for tap in range(kernel_h * kernel_w):
                y = i * stride_h - pad_h + tap // kernel_w * step_h
                x = j * stride_w - pad_w + tap % kernel_w * step_w
                if 0 <= y < height and 0 <= x < width:
                    table[i, j, tap] = y * width + x
    return table


def random_indices(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Valid indices that no pooling need have made: local, flat, and the size after pooling."""
    n, c, height, width = case.shape
    h, w = case.pool(torch.zeros(1, 1, height, width))[0].shape[2:]
    table = taps_of(case, h, w, height, width)
    scores = torch.rand((n, c, *table.shape), generator=torch.Generator().manual_seed(seed))
    local = torch.where(table >= 0, scores, -1.0).argmax(-1)
    flat = table.expand(n, c, *table.shape).gather(-1, local[..., None])[..., 0]
    return local.to(torch.uint8), flat, (h, w)


def unpooled(x: Tensor, flat: Tensor, height: int, width: int) -> Tensor:
    """One window after the other in row-major order, so that the latest stands."""
    n, c = x.shape[:2]
    values, places = x.flatten(2).flatten(0, 1), flat.flatten(2).flatten(0, 1)
    output = x.new_zeros(n * c, height * width)
    for window in range(values.shape[1]):
        output[torch.arange(n * c), places[:, window]] = values[:, window]
    return output.view(n, c, height, width)


def latest(flat: Tensor, height: int, width: int) -> Tensor:
    """Which windows stand."""
    ranks = torch.arange(flat.shape[2] * flat.shape[3]).view(1, 1, *flat.shape[2:]).expand(flat.shape)
    owner = unpooled(ranks + 1, flat, height, width).flatten(2)
    return owner.gather(2, flat.flatten(2)).view(flat.shape) == ranks + 1


def gathered(grad: Tensor, flat: Tensor) -> Tensor:
    return grad.flatten(2).gather(2, flat.flatten(2)).view(flat.shape)


def summed(x: Tensor, flat: Tensor, height: int, width: int) -> Tensor:
    """All windows that point at an element, one after the other, in the accumulation dtype."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    n, c = x.shape[:2]
    values, places = x.to(wide).flatten(2).flatten(0, 1), flat.flatten(2).flatten(0, 1)
    output = values.new_zeros(n * c, height * width)
    for window in range(values.shape[1]):
        output[torch.arange(n * c), places[:, window]] += values[:, window]
    return output.view(n, c, height, width).to(x.dtype)


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple) else (value, value)
