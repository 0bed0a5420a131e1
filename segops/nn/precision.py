"""The precision of all convolutions of a model at once."""

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
