"""Names of networks, and what builds and loads each: one module a family."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from segops.models import official
from segops.models.model import SegmentationModel

FAMILIES: dict[str, tuple[str, ...]] = {
    "scene_parsing": ("scene_parsing_2009",),
    "fcn": ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce"),
    "unet": ("unet", "unet_valid"),
    "segnet": ("segnet", "segnet_basic"),
    "deconvnet": ("deconvnet",),
    "dilation": ("dilation8_camvid", "dilation7_kitti", "dilation10_cityscapes", "dilation8_voc"),
    "drn": ("drn_d_22", "drn_d_38", "drn_d_54", "drn_d_105", "drn_c_26", "drn_c_42", "drn_c_58"),
    "hourglass": ("hourglass2", "hourglass8"),
    "hrnet": (
        "hrnet_w18_small_v1",
        "hrnet_w18_small_v2",
        "hrnet_w18",
        "hrnet_w32",
        "hrnet_w48",
        "hrnet_w48_ocr",
    ),
    "basnet": ("basnet",),
    "u2net": ("u2net", "u2netp"),
    "oct_resnet": ("oct_resnet50",),
    "csnet": ("csnet_x1", "csnet_x2", "csnet_l_x1", "csnet_l_x2"),
    "torchvision_heads": ("fcn_resnet50", "deeplabv3_resnet50"),
}
"""Modules of segops.models, each with a table ``MODELS`` of its names."""


@dataclass(frozen=True)
class Entry:
    """A line of a family's table ``MODELS``.

    Attributes:
        build: ``build(num_classes, in_channels, **options)`` makes the network.
        convert: the tensors of an official checkpoint (:func:`segops.models.official.tensors` of it) to this network's
            state; raises ValueError that names a key it does not know.
        options_of: what of ``num_classes``, ``in_channels`` and the options a converted state was trained with.
        num_classes: used when none is given; None asks for one.
    """

    build: Callable[..., SegmentationModel]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    options_of: Callable[[dict[str, Tensor]], dict[str, Any]]
    num_classes: int | None = None


def list_models() -> list[str]:
    """Every name that :func:`create_model` takes."""
    return [name for names in FAMILIES.values() for name in names]


def entry(name: str) -> Entry:
    """What the family of `name` says of it.

    Raises:
        ValueError: no network has that name.
    """
    for family, names in FAMILIES.items():
        if name in names:
            table: dict[str, Entry] = importlib.import_module(f"segops.models.{family}").MODELS
            return table[name]
    raise ValueError(f"segops.models: there is no network {name!r}; there are {', '.join(list_models())}")


def create_model(name: str, num_classes: int | None = None, in_channels: int = 3, **options: Any) -> SegmentationModel:
    """A network of :func:`list_models`, with fresh weights.

    Args:
        name: of the network.
        num_classes: channels K of its logits; 1 by default for the networks of salient objects.
        in_channels: of the images.
        options: of the network's class, such as ``bilinear=True`` of "unet".

    Returns:
        A :class:`segops.models.SegmentationModel`: [N, in_channels, H, W] to logits [N, K, H, W].

    Raises:
        ValueError: no such name, or no number of classes where there is no default.
        TypeError: an option that the network does not have.
    """
    found = entry(name)
    classes = found.num_classes if num_classes is None else num_classes
    if classes is None:
        raise ValueError(f"segops.models.create_model: {name!r} needs num_classes")
    for what, value in (("num_classes", classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"segops.models.create_model: {what} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"segops.models.create_model: {what} must be positive, got {value}")
    return found.build(classes, in_channels, **options)


def convert_official_state_dict(name: str, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of ``create_model(name)`` from that of a published checkpoint.

    Prefixes such as ``module.``, an enclosing ``{"state_dict": ...}`` and entries that are no parameters of the network
    are dropped. The numbers of classes and of input channels are the checkpoint's.

    Args:
        name: of the network.
        state_dict: official keys to tensors; the patterns known are in the docstring of the network's module.

    Raises:
        ValueError: a key is unknown or missing, or a tensor has the wrong shape; the message names the key.
    """
    return _converted(name, state_dict)[0]


def load_official(name: str, path: str | PathLike[str], **options: Any) -> SegmentationModel:
    """``create_model(name)`` with the weights of a published checkpoint, in training mode as every new module.

    Args:
        name: of the network.
        path: a file that :func:`torch.load` reads with ``weights_only=True``: pickled code is never executed.
        options: of :func:`create_model`; the numbers of classes and of input channels come from the checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of tensors alone, or its keys are not those of the network.
    """
    content = official.read(path)
    state, found = _converted(name, content)
    model = create_model(name, **{**found, **options})
    in_file = partial(official.key_in_file, entry(name).convert, official.tensors(content))
    official.check(name, state, model.state_dict(), in_file)
    model.load_state_dict(state)
    return model


def _converted(name: str, state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found = entry(name)
    file = official.tensors(state_dict)
    in_file = partial(official.key_in_file, found.convert, file)
    state = found.convert(file)
    try:
        options = found.options_of(state)
    except KeyError as error:
        key = in_file(error.args[0])
        lacks = f"the key {key!r}" if key is not None else f"what becomes {error}"
        raise ValueError(f"segops.models: the checkpoint of {name!r} lacks {lacks}") from None
    with torch.device("meta"):
        wanted = create_model(name, **options).state_dict()
    state = official.with_counters(state, wanted)
    official.check(name, state, wanted, in_file)
    return {key: state[key] for key in wanted}, options
