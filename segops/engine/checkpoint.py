"""Checkpoints: written whole or not at all, read without running their code."""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segops import models
from segops.engine.output import RunError

_FORMAT = "segops checkpoint 1"


@dataclass(frozen=True)
class ModelSpec:
    """What makes a network of :func:`segops.models.create_model` once more."""

    name: str
    num_classes: int
    in_channels: int
    options: dict[str, Any]

    def build(self) -> models.SegmentationModel:
        return models.create_model(self.name, self.num_classes, self.in_channels, **self.options)


@dataclass(frozen=True)
class Classes:
    """What the labels mean.

    Attributes:
        data: name of the dataset.
        names: of the classes.
        palette: RGB colour of each, 0 .. 255.
        ignore_index: label of pixels that count nowhere, or None.
    """

    data: str
    names: Sequence[str]
    palette: Sequence[Sequence[int]]
    ignore_index: int | None

    @classmethod
    def of(cls, name: str, dataset: Any) -> Classes:
        """Those of a dataset with classes, palette and ignore_index."""
        palette = torch.as_tensor(dataset.palette).tolist()
        return cls(name, list(dataset.classes), palette, dataset.ignore_index)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        model: the network; None for one that is not of segops.models, which its user has to build.
        classes: what it tells apart.
        config: settings of the run, as :meth:`segops.engine.config.TrainConfig.plain` has them.
        weights: to predict with: the running mean where there is one.
        training: all that a continuation needs.
    """

    model: ModelSpec | None
    classes: Classes
    config: dict[str, Any]
    weights: dict[str, Tensor]
    training: dict[str, Any]

    def network(self, path: Path) -> models.SegmentationModel:
        """The trained network in eval mode, on the CPU; `path` is for messages."""
        if self.model is None:
            raise RunError(f"{path} holds a network that is not of segops.models: build it and load its weights")
        network = self.model.build()
        load_weights(network, self.weights, path)
        return network.eval()


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """load_state_dict; a RunError names the file and the first key that does not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"the weights of {path} do not fit the network: {' '.join(str(error).split())}") from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file so that at any moment, whatever happens to process or machine, `path` is the old or the new one.

    Raises:
        RunError: it cannot be written; the old file is in place.
    """
    content: dict[str, Any] = {"format": _FORMAT, "config": checkpoint.config, "weights": checkpoint.weights}
    content["classes"] = dict(vars(checkpoint.classes))
    content["model"] = None if checkpoint.model is None else dict(vars(checkpoint.model))
    content["training"] = checkpoint.training
    partial = path.with_name(f"{path.name}.partial")  # beside it: os.replace does not cross file systems
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, is on the disk
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's writer has its own words for a full disk
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise RunError(f"cannot write the checkpoint {path}: {reason}") from error


def load(path: Path) -> Checkpoint:
    """Read a file of :func:`save`; all tensors are on the CPU.

    Raises:
        RunError: there is no such file, or it is not a whole checkpoint of segops.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch seeks before the beginning of a file that was cut off
            raise RunError(f"{path} is not a checkpoint: it is cut off") from error
        raise RunError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RunError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise RunError(f"{path} is not a checkpoint of segops")
    return Checkpoint(
        None if content["model"] is None else ModelSpec(**content["model"]),
        Classes(**content["classes"]),
        content["config"],
        content["weights"],
        content["training"],
    )


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process, as a checkpoint can hold them."""
    numpy: Any = np.random.get_state(legacy=False)
    key = numpy["state"]["key"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": torch.from_numpy(key.astype(np.int64))}},
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Bring back what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    numpy = state["numpy"]
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].numpy().astype(np.uint32)}})
