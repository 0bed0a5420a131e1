"""Max-pooling and its inverse as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segops.ops.max_unpool import max_pool2d, max_unpool2d
from segops.ops.max_unpool_arguments import MOST_TAPS

Size = int | tuple[int, int]


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` on :func:`segops.max_pool2d`.

    With ``return_indices=True`` the indices are uint8 positions in windows, for :class:`MaxUnpool2d`. Otherwise the
    same kernel runs, and its indices are kept for the backward pass alone; windows of more than 256 elements, which
    these indices cannot count, then fall through to :func:`torch.nn.functional.max_pool2d`.

    Args: those of :class:`torch.nn.MaxPool2d`, with the same defaults; also its representation and its (empty) state.

    Shape:
        [N, C, H, W] or [C, H, W] to [N, C, h, w] or [C, h, w], and the indices of that shape.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        kernel = self.kernel_size
        taps = kernel * kernel if isinstance(kernel, int) else kernel[0] * kernel[-1]
        if taps > MOST_TAPS and not self.return_indices:
            pooled: Tensor = super().forward(input)
            return pooled
        result = max_pool2d(input, kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return result if self.return_indices else result[0]


class MaxUnpool2d(nn.MaxUnpool2d):
    """:class:`torch.nn.MaxUnpool2d` on :func:`segops.max_unpool2d`, for both kinds of index.

    Args: those of :class:`torch.nn.MaxUnpool2d`, with the same defaults, its representation and its (empty) state; and
        dilation, that of the pooling.

    Shape:
        input [N, C, h, w] or [C, h, w] and indices of its shape, uint8 (positions in windows, of :class:`MaxPool2d`) or
        int64 (positions in planes, of :class:`torch.nn.MaxPool2d`), to [N, C, H, W] or [C, H, W]; H and W end
        `output_size`, if that is given.
    """

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1) -> None:
        super().__init__(kernel_size, stride, padding)
        self.dilation = dilation

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        size = None if output_size is None else list(output_size)
        return max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, self.dilation, size)

    def extra_repr(self) -> str:
        plain = super().extra_repr()
        return plain if self.dilation in (1, (1, 1)) else f"{plain}, dilation={self.dilation}"
