"""Of all convolutions of a model at once: their precision, and their weights packed for inference."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from segops.nn.convolution import DilatedConv2d
from segops.nn.octave import GOctConv2d
from segops.ops.dilated_conv_arguments import check_precision

Model = TypeVar("Model", bound=nn.Module)


def set_precision(model: Model, precision: str) -> Model:
    """Give every convolution of segops in `model` the precision "default" or "fast", see :func:`segops.dilated_conv2d`.

    Returns:
        The model itself.

    Raises:
        ValueError: another precision, or a model without such convolutions.
    """
    check_precision(precision)
    convolutions = [module for module in model.modules() if isinstance(module, DilatedConv2d | GOctConv2d)]
    if not convolutions:
        raise ValueError("segops.nn.set_precision: the model has no convolutions of segops; see segops.convert")
    for module in convolutions:
        module.precision = precision
    return model


def prepack(model: Model) -> Model:
    """Keep the weights of 3x3 convolutions as Winograd's algorithm multiplies by them, for inference on a CPU.

    A call then spares the packing. Each convolution keeps 16/9 of its float32 weight's memory besides, at precision
    "fast" four times its memory: set the precision first. A weight that has changed since, whatever way, is an error
    of the next call without gradients and never an old answer: each call compares a checksum of the whole weight. A
    state that is loaded, another device or dtype, copies and pickles leave behind what is kept. Calls with gradients do
    not use it.

    Returns:
        The model itself.

    Raises:
        ValueError: a model without convolutions that can be prepacked.
    """
    if not sum(module.prepack() for module in model.modules() if isinstance(module, DilatedConv2d)):
        raise ValueError("segops.nn.prepack: the model has no 3x3 convolutions of segops on a CPU that has AVX2")
    return model
