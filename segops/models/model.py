"""What every network has in common: where its logits end, and how they come to the size of the image."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from segops.ops.upsample_bilinear import upsample_bilinear2d


class SegmentationModel(nn.Module):
    """A network from images to logits, split where the last bilinear upsampling begins.

    A family writes :meth:`coarse_logits`; :meth:`forward` brings their result to the image's size. Training and
    :func:`segops.predict` use the coarse logits themselves, with losses and an argmax that never upsample.

    Attributes:
        align_corners: of the last, bilinear step.
        has_side_outputs: whether there are logits of several depths to be trained.
        side_outputs: whether forward returns them in eval mode as well; an argument of forward overrides it.
    """

    align_corners = False
    has_side_outputs = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" not in cls.__dict__:
            cls.forward = _with_code_of_its_own(SegmentationModel.forward)  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        self.side_outputs = False

    def coarse_logits(self, input: Tensor, side_outputs: bool = False) -> list[Tensor]:
        """Logits [N, K, h, w] at the size the network itself ends with, and with `side_outputs` all others after them.

        Args:
            input: [N, in_channels, H, W].
            side_outputs: all that training needs, finest first; otherwise the list has one item.
        """
        raise NotImplementedError

    def official_output(self, input: Tensor) -> Any:
        """What the published implementation returns for `input`: its tensors, in its order, after its nonlinearity."""
        return self.coarse_logits(input)[0]

    def forward(self, input: Tensor, *, raw_output: bool = False, side_outputs: bool | None = None) -> Any:
        """Logits at the size of the image.

        Args:
            input: [N, in_channels, H, W], floating-point.
            raw_output: return :meth:`official_output` instead.
            side_outputs: return a list of all logits, finest first, rather than the finest; by default in training.

        Returns:
            [N, K, H, W], or a list of them where the network has side outputs and they are wanted.
        """
        if raw_output:
            return self.official_output(input)
        if side_outputs is None:
            side_outputs = self.training or self.side_outputs
        listed = side_outputs and self.has_side_outputs
        height, width = input.shape[-2:]
        full = [self.to_size(logits, height, width) for logits in self.coarse_logits(input, listed)]
        return full if listed else full[0]

    def to_size(self, logits: Tensor, height: int, width: int) -> Tensor:
        """The last step: bilinear interpolation, or nothing where the size is right already."""
        if logits.shape[-2] == height and logits.shape[-1] == width:
            return logits
        return upsample_bilinear2d(logits, (height, width), align_corners=self.align_corners)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy. torch.compile counts by code how often it has compiled, and refuses after a few different networks."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace()
    copy = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
    copy.__doc__, copy.__qualname__ = function.__doc__, function.__qualname__
    return copy
