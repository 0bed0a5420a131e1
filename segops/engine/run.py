"""A training run from its settings alone: data, network, folder, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segops import models
from segops.data import class_statistics
from segops.engine import checkpoint, datasets
from segops.engine.checkpoint import Classes, ModelSpec
from segops.engine.config import TrainConfig
from segops.engine.output import OutputDirectory, RunError
from segops.engine.ranks import Ranks, started
from segops.engine.trainer import BEST, LAST, Trainer


def train(config: TrainConfig, resume: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train as `config` says, alone or as one of the processes that torchrun has started.

    Args:
        config: of the run; its folder must not hold another one.
        resume: a checkpoint to continue from, in the same folder or another.
        console: for progress and results; the first process's is used.

    Returns:
        The scores of the last measurement (:func:`segops.engine.evaluate.measure`).

    Raises:
        RunError: for a reason its user can act on.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with started(config.device) as ranks:
        console = console if console is not None and ranks.first else Console(quiet=True)
        if ranks.first:
            OutputDirectory(config.out, (LAST, BEST, "train.csv", "val.csv"))
            if resume is None and (config.out / LAST).exists():
                raise RunError(f"{config.out} holds a run: continue it with --resume {config.out}, or choose --out")
        trainer = _trainer(config, ranks, console)
        if resume is not None:
            trainer.resume(resume)
        count = sum(p.numel() for p in trainer.model.parameters())
        console.print(
            f"{config.model}, {count:,} parameters, {trainer.num_classes} classes; {len(trainer.train_data)} images of "
            f"{config.data} to train on, {len(trainer.val_data)} to measure on; step {trainer.step} of {trainer.steps} "
            f"on {ranks.count} x {ranks.device}.",
            highlight=False,
            soft_wrap=True,
        )
        scores = trainer.run()
        console.print(f"mIoU {scores['miou']:.4f}, pixel accuracy {scores['pixel_accuracy']:.4f}", highlight=False)
        console.print(f"Written to {config.out}: {LAST}, {BEST}, train.csv, val.csv", highlight=False, soft_wrap=True)
        return scores


def _trainer(config: TrainConfig, ranks: Ranks, console: Console) -> Trainer:
    train_data = datasets.open_split(config.data, config.root, config.train_split)
    val_data = datasets.open_split(config.data, config.root, config.val_split)
    classes = Classes.of(config.data, train_data)
    num_classes = _channels(config, train_data.num_classes)
    spec = ModelSpec(config.model, num_classes, 3, config.model_options)
    torch.manual_seed(config.seed)
    model = spec.build()
    if config.weights is not None:
        model = _with_weights(spec, config.weights)
    weights = None
    if config.class_weights == "median":
        with console.status("counting the pixels of each class"):
            weights = class_statistics(train_data).median_frequency_weights()
    # From here on each rank draws numbers of its own, for dropout.
    torch.manual_seed(config.seed + 1 + ranks.rank)
    return Trainer(
        config, model, num_classes, train_data, val_data, classes,
        spec=spec, class_weights=weights, ranks=ranks, console=console,
    )  # fmt: skip


def _channels(config: TrainConfig, classes: int) -> int:
    """K of the logits: the setting, or the classes of the data, two of which are one for a network of saliency."""
    default = models.registry.entry(config.model).num_classes
    channels = config.num_classes or (1 if classes == 2 and default == 1 else classes)
    if max(channels, 2) != max(classes, 2):  # one class is two, told apart by a sigmoid
        raise RunError(f"num_classes is {channels}, {config.data} has {classes} classes", exit_code=2)
    return channels


def _with_weights(spec: ModelSpec, path: Path) -> models.SegmentationModel:
    """The network with the weights of a checkpoint of segops, or of a published one."""
    if not path.is_file():
        raise RunError(f"cannot read the weights {path}: there is no such file")
    try:
        found = checkpoint.load(path)
    except RunError:  # not of segops
        options = {**spec.options, "num_classes": spec.num_classes, "in_channels": spec.in_channels}
        try:
            return models.load_official(spec.name, path, **options)
        except ValueError as error:
            raise RunError(str(error)) from error
    model = spec.build()
    checkpoint.load_weights(model, found.weights, path)
    return model
