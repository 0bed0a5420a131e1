"""Tensors that backward computes once more instead of keeping them.

A convolution needs its input again for the gradient of its weight. Where that input is cheap to compute from what is
kept anyway (an activation from the batch norm's input, that from the image if it is of few channels, an unpooling from
the pooled values, a concatenation from its parts), its maker remembers how, and the convolution keeps the parts
instead. Inside compiled graphs nothing is remembered: there the compiler chooses what to keep.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Kept(NamedTuple):
    """
    Attributes:
        rebuild: the tensor from `parts`; with its bits, where the functions that were remembered are deterministic.
        parts: what has to be kept.
    """

    rebuild: Callable[..., Tensor]
    parts: tuple[Tensor, ...]


class _Recipe(NamedTuple):
    kept: Kept
    version: int  # of the tensor: one that was written to since is no longer what the recipe gives


#: As long as the tensor is alive.
_recipes: MutableMapping[Tensor, _Recipe] = WeakTensorKeyDictionary()


def remember(output: Tensor, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`output`, with it that it is ``compute(*inputs)``; inputs that are remembered themselves are not kept either."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and output.requires_grad):
        return output
    sources = [kept(x) for x in inputs]
    ends = [0]
    for source in sources:
        ends.append(ends[-1] + len(source.parts))

    def rebuild(*parts: Tensor) -> Tensor:
        return compute(*(source(*parts[start:end]) for source, start, end in spans))

    spans = [(source.rebuild, start, end) for source, start, end in zip(sources, ends, ends[1:], strict=False)]
    parts = tuple(part.detach() for source in sources for part in source.parts)
    _recipes[output] = _Recipe(Kept(rebuild, parts), output._version)
    return output


def kept(x: Tensor) -> Kept:
    """What to keep of `x` for backward: the parts it was made of if that is remembered, else itself."""
    recipe = _recipes.get(x)
    if recipe is not None and recipe.version == x._version:
        return recipe.kept
    return Kept(_itself, (x,))


def is_remembered(x: Tensor) -> bool:
    """Whether :func:`kept` keeps anything else than `x`."""
    return kept(x).rebuild is not _itself


def _itself(x: Tensor) -> Tensor:
    return x
