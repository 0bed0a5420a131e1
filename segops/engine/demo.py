"""The main job: train a small SegNet-Basic, or a network by name, on scenes of digits, and show what came of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from segops import models
from segops.data import DigitScenes
from segops.engine import op_table
from segops.engine.evaluate import Preparation, measure
from segops.engine.output import OutputDirectory, RunError
from segops.engine.picture import loss_png, prediction_png
from segops.engine.progress import TrainingProgress
from segops.engine.ranks import Ranks
from segops.ops.deep_supervision_loss import deep_supervision_loss

FILES = ("prediction.png", "loss.png", "metrics.json")
_SHOWN = 6  # scenes in the picture
#: What fits the time of a demo; networks that are not here are as they were published.
_SMALLER = {"segnet": {"width": 16}, "segnet_basic": {"width": 24}}


@dataclass(frozen=True)
class DemoConfig:
    """What `segops demo` does; the defaults take two to three minutes on two cores.

    Attributes:
        out: directory for the files.
        seed: of the network's initial weights and of the scenes.
        steps: training steps, each on `batch_size` scenes that were not seen before.
        learning_rate: its peak, after a linear warm-up and before a half cosine to zero.
        model: name of the network, of :func:`segops.models.list_models`.
        size: height and width of the scenes.
        val_scenes: held-out scenes to measure on.
        threads: of PyTorch; None leaves them as they are.
        rounds: timings of each operator in the table.
    """

    out: Path = Path("segops-demo")
    seed: int = 0
    steps: int = 1200
    batch_size: int = 12
    learning_rate: float = 5e-3
    model: str = "segnet_basic"
    size: int = 64
    val_scenes: int = 256
    threads: int | None = None
    rounds: int = 15


QUICK = DemoConfig(steps=12, batch_size=4, size=48, val_scenes=8, rounds=2)
"""Every stage in a few seconds, with a network that has not learnt much."""


def run_demo(config: DemoConfig, console: Console) -> dict[str, Any]:
    """Train, evaluate, write the files named in `FILES`, and print the table of operators.

    Returns:
        What :func:`segops.engine.evaluate.measure` tells of the held-out scenes.

    Raises:
        RunError: no such network, or one that does not take scenes of this size; a file cannot be written, a package is
            missing, an operator is wrong, or the user interrupted; the message is one line that also says what was
            written.
    """
    output = OutputDirectory(config.out, FILES)
    try:
        with _threads(config.threads):
            with _reproducible(config.seed):
                scores = _train_and_report(config, output, console)
            comparisons = [op_table.compare(entry, config.rounds) for entry in op_table.ENTRIES]
            console.print(op_table.render(comparisons))
    except ImportError as error:
        raise RunError(str(error)) from error
    except KeyboardInterrupt:
        raise RunError(f"interrupted; {output.report()}", exit_code=130) from None
    wrong = [f"{c.operator} ({c.what})" for c in comparisons if not c.correct]
    if wrong:
        raise RunError(f"the results of {', '.join(wrong)} differ from float64 by more than PyTorch's do")
    return scores


def _train_and_report(config: DemoConfig, output: OutputDirectory, console: Console) -> dict[str, Any]:
    size = (config.size, config.size)
    held_out = DataLoader(DigitScenes("val", config.val_scenes, size, seed=config.seed), batch_size=32)
    model = network(config)
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"Training {config.model} of {parameters:,} parameters on {config.steps} x {config.batch_size} scenes "
        f"of digits, {config.size} x {config.size} pixels, with segops' operators on {torch.get_num_threads()} threads."
    )
    begin = time.perf_counter()
    losses = train(model, config, console)
    console.print(f"Loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last.")
    # The time is not in the record: two runs of the same seed write the same files.
    console.print(f"Training took {time.perf_counter() - begin:.0f} s.", highlight=False)

    # Images as they are, on this process alone.
    prepare, ranks = Preparation((0.0,) * 3, (1.0,) * 3, channels_last=True), Ranks(0, 1, torch.device("cpu"))
    scores, shown = measure(model, held_out, prepare, ranks, len(DigitScenes.classes), None, _SHOWN)
    console.print(f"On {config.val_scenes} scenes of digits and photographs held out from training:")
    accuracy, miou = scores["pixel_accuracy"], scores["miou"]
    console.print(f"  pixel accuracy {accuracy:.4f}")
    console.print(f"  mIoU           {miou:.4f}")

    summary = f"pixel accuracy {accuracy:.3f}, mIoU {miou:.3f} on held-out scenes"
    record = {
        "model": config.model,
        "seed": config.seed,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "size": config.size,
        "val_scenes": config.val_scenes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": parameters,
        "pixel_accuracy": accuracy,
        "miou": miou,
        "iou": {
            name: None if math.isnan(iou) else iou for name, iou in zip(DigitScenes.classes, scores["iou"], strict=True)
        },
        "losses": losses,
    }
    images, labels, predictions = (torch.stack(kind) for kind in zip(*shown, strict=True))
    picture = prediction_png(images, labels, predictions, DigitScenes.classes, DigitScenes.palette, summary)
    output.write("prediction.png", picture)
    output.write("loss.png", loss_png(losses, "cross-entropy and Dice loss while training"))
    output.write("metrics.json", (json.dumps(record, indent=1) + "\n").encode())
    console.print(f"Written to {config.out}: {', '.join(output.written)}", soft_wrap=True)
    return scores


def network(config: DemoConfig) -> models.SegmentationModel:
    """The network of a configuration, tried on one scene."""
    try:
        model = models.create_model(
            config.model, num_classes=len(DigitScenes.classes), **_SMALLER.get(config.model, {})
        )
        with torch.no_grad():
            model.eval().coarse_logits(torch.zeros(1, 3, config.size, config.size))
    except ValueError as error:
        raise RunError(str(error), exit_code=2) from error
    return model.to(memory_format=torch.channels_last)


def train(model: models.SegmentationModel, config: DemoConfig, console: Console) -> list[float]:
    """Train `model` in place under a progress bar; returns the loss of every step."""
    scenes = DigitScenes("train", config.steps * config.batch_size, (config.size, config.size), seed=config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-3)
    warm_up = 0.15 * config.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / config.steps)),
    )
    losses: list[float] = []
    model.train()
    with TrainingProgress(console, 0, config.steps, config.batch_size) as progress:
        for images, labels in DataLoader(scenes, config.batch_size):
            losses.append(train_step(model, optimizer, images, labels))
            schedule.step()
            progress.report(loss=losses[-1])
            progress.advance()
    return losses


def train_step(
    model: models.SegmentationModel, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """One step on images [N, 3, H, W] and labels [N, H, W]; returns the loss before it."""
    heads = model.coarse_logits(images.contiguous(memory_format=torch.channels_last), side_outputs=True)
    # Where logits are coarser than the labels, the loss is that of their interpolation, which is never made.
    # A single scene holds few of the classes: Dice over the whole batch has something to measure for each.
    options: dict[str, Any] = {"batch_dice": True, "align_corners": model.align_corners}
    loss = cast(Tensor, deep_supervision_loss(heads, labels, [1 / len(heads)] * len(heads), **options))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Fixed random numbers and deterministic algorithms; the caller's settings come back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill_before = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        # Filling memory that is about to be written finds bugs, but costs time and changes no result.
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = fill_before
