"""Convolutions of features that live at several resolutions.

A feature is a list of branches: branch i has 1/2^i of the size, and is None where it has no channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segops.nn.convolution import DilatedConv2d
from segops.nn.pooling import MaxPool2d
from segops.ops.dilated_conv import dilated_conv2d
from segops.ops.upsample_bilinear import upsample_bilinear2d
from segops.ops.upsample_nearest import upsample_nearest2d

Branches = Sequence[Tensor | None]


def _halves(op: str, images: Branches) -> None:
    """Raise where a branch is not half of the one before it."""
    sizes = [(i, image.shape[-2:]) for i, image in enumerate(images) if image is not None]
    for (i, fine), (j, coarse) in itertools.pairwise(sizes):
        times = 2 ** (j - i)
        if fine[0] != coarse[0] * times or fine[1] != coarse[1] * times:
            raise ValueError(
                f"segops.nn.{op}: branch {i} must be {times} times as large as branch {j}, "
                f"got {list(fine)} and {list(coarse)}"
            )


def _divisible(op: str, image: Tensor, by: int) -> None:
    height, width = image.shape[-2:]
    if height % by or width % by:
        raise ValueError(f"segops.nn.{op}: sides must be multiples of {by}, got {height} x {width}")


class OctConv2d(nn.Module):
    """Octave convolution (Chen et al., "Drop an Octave", ICCV 2019), with high and low frequencies at two sizes.

    Of C channels int(alpha * C) are low, at half the size. Each part of the output is the sum of a convolution of the
    part of its own frequency and of one of the other: averages of 2x2 of the high ones are convolved, the low ones are
    convolved and then repeated 2x2. With stride 2, averages of 2x2 are taken first; what goes from low to high then
    needs no repetition.
    Its weights, h2h, h2l, l2h and l2l, are together as many as those of :class:`torch.nn.Conv2d`; a depthwise one
    (groups = in_channels = out_channels) has no paths between frequencies. They begin as PyTorch's.

    Args:
        in_channels, out_channels, kernel_size, padding, dilation: of :class:`torch.nn.Conv2d`.
        stride: 1 or 2.
        groups: of channels, in each path; each path's channels must be multiples of it unless it is depthwise.
        bias: one for each channel of the output, added once.
        alpha_in, alpha_out: shares of low frequencies, from 0 to 1; 0 is a plain tensor, without low ones.

    Shape:
        (high [N, C_h, H, W], low [N, C_l, H / 2, W / 2]) to such a pair of the size that the convolution gives. One of
        no channels is None, and with alpha_in 0 a tensor is taken as well as a pair; with alpha_out 0 one is returned.
        H and W must be multiples of 2, with stride 2 and low outputs of 4.

    Raises:
        ValueError: an option out of range, or sizes that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        alpha_in: float = 0.5,
        alpha_out: float = 0.5,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"segops.nn.OctConv2d: stride must be 1 or 2, got {stride!r}")
        for name, alpha in (("alpha_in", alpha_in), ("alpha_out", alpha_out)):
            if not 0 <= alpha <= 1:
                raise ValueError(f"segops.nn.OctConv2d: {name} must be from 0 to 1, got {alpha!r}")
        self.stride = stride
        self.low_in, self.low_out = int(alpha_in * in_channels), int(alpha_out * out_channels)
        self.high_in, self.high_out = in_channels - self.low_in, out_channels - self.low_out
        depthwise = groups > 1 and groups == in_channels
        if depthwise and (self.high_in, self.low_in) != (self.high_out, self.low_out):
            raise ValueError(
                "segops.nn.OctConv2d: a depthwise one must keep its channels, got "
                f"{self.high_in} + {self.low_in} and {self.high_out} + {self.low_out}"
            )

        def path(inputs: int, outputs: int, crosses: bool, bias: bool) -> DilatedConv2d | None:
            if not inputs or not outputs or (crosses and depthwise):
                return None
            parts = inputs if depthwise else groups
            return DilatedConv2d(inputs, outputs, kernel_size, 1, padding, dilation, parts, bias)

        # The bias of an output belongs to the path of its own frequency where there is one.
        self.conv_h2h = path(self.high_in, self.high_out, False, bias)
        self.conv_l2l = path(self.low_in, self.low_out, False, bias)
        self.conv_h2l = path(self.high_in, self.low_out, True, bias and self.conv_l2l is None)
        self.conv_l2h = path(self.low_in, self.high_out, True, bias and self.conv_h2h is None)

    def forward(self, input: Tensor | Branches) -> Tensor | tuple[Tensor | None, Tensor | None]:
        high, low = (input, None) if isinstance(input, Tensor) else input
        self._check(high, low)
        if high is not None and self.stride == 2:
            _divisible("OctConv2d", high, 2)
            high = F.avg_pool2d(high, 2)
        to_high = to_low = None
        if self.conv_h2h is not None:
            to_high = self.conv_h2h(high)
        if self.conv_l2h is not None:
            from_low = self.conv_l2h(low)
            if self.stride == 1:
                from_low = upsample_nearest2d(from_low, scale_factor=2)
            to_high = from_low if to_high is None else to_high + from_low
        if self.conv_l2l is not None:
            to_low = self.conv_l2l(low if self.stride == 1 or low is None else F.avg_pool2d(low, 2))
        if self.conv_h2l is not None and high is not None:
            _divisible("OctConv2d", high, 2)
            from_high = self.conv_h2l(F.avg_pool2d(high, 2))
            to_low = from_high if to_low is None else to_low + from_high
        if self.low_out == 0:
            assert to_high is not None
            return to_high
        return to_high, to_low

    def _check(self, high: Tensor | None, low: Tensor | None) -> None:
        for name, image, channels in (("high", high, self.high_in), ("low", low, self.low_in)):
            got = 0 if image is None else image.shape[1]
            if got != channels:
                raise ValueError(f"segops.nn.OctConv2d: {name} must have {channels} channels, got {got}")
        _halves("OctConv2d", (high, low))


class GOctConv2d(nn.Module):
    """Generalised octave convolution (Gao et al., "Highly Efficient Salient Object Detection", ECCV 2020).

    Any number of branches in and out. One weight [C_out, C_in, k, k] is cut at its branches' channels. What goes to a
    coarser branch is max-pooled, then convolved; what goes to a finer one is convolved, then bilinearly interpolated;
    what arrives at a branch is added up. With stride 2, averages of 2x2 of every branch are taken first.

    Args:
        in_channels, out_channels: of each branch, finest first; 0 for one that is not there.
        kernel_size, padding: of :class:`torch.nn.Conv2d`, of odd kernels that keep the size.
        stride: 1 or 2.

    Shape:
        a list of [N, C_i, H / 2^i, W / 2^i], None for a branch of 0 channels, to such a list.

    Raises:
        ValueError: an option out of range, or branches that do not fit.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"segops.nn.GOctConv2d: stride must be 1 or 2, got {stride!r}")
        self.in_channels, self.out_channels = list(in_channels), list(out_channels)
        self.stride, self.padding = stride, padding
        dense = nn.Conv2d(sum(in_channels), sum(out_channels), kernel_size, bias=False)
        self.weight = dense.weight  # as PyTorch begins it
        self.precision = "default"

    def forward(self, input: Branches) -> list[Tensor | None]:
        self._check(input)
        if self.stride == 2:
            for image in input:
                if image is not None:
                    _divisible("GOctConv2d", image, 2)
            input = [None if image is None else F.avg_pool2d(image, 2) for image in input]
        outputs: list[Tensor | None] = []
        weights = self.weight.split(self.out_channels)
        for j, weight in enumerate(weights):
            total = None
            if weight.shape[0]:
                for i, (image, part) in enumerate(zip(input, weight.split(self.in_channels, 1), strict=True)):
                    if image is not None:
                        arriving = self._path(image, part, i, j)
                        total = arriving if total is None else total + arriving
            outputs.append(total)
        return outputs

    def _path(self, image: Tensor, weight: Tensor, i: int, j: int) -> Tensor:
        if j > i:
            _divisible("GOctConv2d", image, 2 ** (j - i))
            image = MaxPool2d(2 ** (j - i))(image)
        output = dilated_conv2d(image, weight, padding=self.padding, precision=self.precision)
        return upsample_bilinear2d(output, scale_factor=2 ** (i - j)) if i > j else output

    def _check(self, input: Branches) -> None:
        channels = [0 if image is None else image.shape[1] for image in input]
        if channels != self.in_channels:
            raise ValueError(f"segops.nn.GOctConv2d: branches must have {self.in_channels} channels, got {channels}")
        _halves("GOctConv2d", input)

    def extra_repr(self) -> str:
        size, options = self.weight.shape[-1], f"stride={self.stride}, padding={self.padding}"
        return f"{self.in_channels}, {self.out_channels}, kernel_size={size}, {options}"
