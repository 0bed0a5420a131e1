"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from segops.engine import checkpoint, interrupt, schedules
from segops.engine.batches import Plan, RankBatches, SeededItems
from segops.engine.checkpoint import Checkpoint, Classes, ModelSpec
from segops.engine.config import TrainConfig
from segops.engine.datasets import ForTraining, Share, batch_of, batches_of_one_size
from segops.engine.ema import ExponentialMovingAverage
from segops.engine.evaluate import Preparation, measure
from segops.engine.losses import Heads, TrainingLoss
from segops.engine.output import RunError
from segops.engine.picture import prediction_png
from segops.engine.progress import TrainingProgress
from segops.engine.ranks import Ranks
from segops.engine.records import Records

LAST, BEST = "last.pt", "best.pt"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_EXIT = {2: 130, 15: 143}  # as a shell has it for SIGINT and SIGTERM


class Trainer:
    """Trains a network and leaves checkpoints, records and pictures in ``config.out``.

    Args:
        config: all settings; its `model`, `num_classes` and `data` are not read here but by what calls this.
        model: on any device; [N, 3, H, W] to logits [N, K, H, W]. A :class:`segops.models.SegmentationModel` is
            trained on its coarse logits, another network on its outputs (:class:`segops.engine.losses.Heads`).
        num_classes: K. One stands for two classes, told apart by a sigmoid.
        train_data, val_data: of items (image float [3, H, W] in 0 .. 1, mask int64 [H, W]).
        classes: what the labels mean.
        spec: what makes `model` again, so that a checkpoint is enough to predict with it.
        class_weights: [K] of the cross-entropy.
        ranks: the processes of the training; each has the same arguments.
        console: for progress and results.

    Raises:
        RunError: settings that do not fit each other or this machine.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        num_classes: int,
        train_data: Any,
        val_data: Any,
        classes: Classes,
        *,
        spec: ModelSpec | None = None,
        class_weights: Tensor | None = None,
        ranks: Ranks | None = None,
        console: Console | None = None,
    ) -> None:
        self.config, self.num_classes, self.classes, self.spec = config, num_classes, classes, spec
        self.ranks = ranks or Ranks(0, 1, torch.device("cpu"))
        self.console = console or Console(quiet=True)
        device = self.ranks.device
        if not len(train_data) or not len(val_data):
            raise RunError(f"{classes.data} has {len(train_data)} images to train on, {len(val_data)} to measure on")
        self.train_data, self.val_data = train_data, val_data
        if config.sync_norm:
            model = _with_sync_norm(model, self.ranks)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        heads = Heads(self.model)
        several = self.ranks.count > 1
        self.network = DistributedDataParallel(heads, process_group=self.ranks.group) if several else heads
        weights = None if class_weights is None else class_weights.to(device)
        align_corners = getattr(model, "align_corners", False)
        group = self.ranks.group
        self.loss = TrainingLoss(config, num_classes, classes.ignore_index, align_corners, weights, group)
        self.prepare = Preparation(config.mean, config.std, channels_last=config.channels_last)
        self.optimizer = _optimizer(config, self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.ema = None if config.ema is None else ExponentialMovingAverage(self.model, config.ema)
        self.plan = Plan(len(train_data), config.batch_size, config.seed)
        self.steps = config.steps or config.epochs * self.plan.steps_per_epoch
        self.step = self.measured_after = 0
        self.best = -math.inf

    @property
    def measured(self) -> nn.Module:
        """What is measured and saved to predict with: the running mean of the weights where there is one."""
        return self.model if self.ema is None else self.ema.model

    def resume(self, path: Path) -> None:
        """Continue where a checkpoint of the same data and network was written, as if nothing had happened.

        Raises:
            RunError: it does not fit.
        """
        found = checkpoint.load(path)
        state = found.training
        if state["plan"] != vars(self.plan):
            raise RunError(
                f"{path} was trained on {_described(state['plan'])}, this run is on {_described(vars(self.plan))}: "
                "a continuation has the same images in the same order"
            )
        if state["step"] > self.steps:
            raise RunError(
                f"{path} has done {state['step']} steps, more than the {self.steps} of this run", exit_code=2
            )
        if (state["ema"] is None) != (self.ema is None):
            raise RunError(f"{path} was trained {'without' if state['ema'] is None else 'with'} ema", exit_code=2)
        checkpoint.load_weights(self.model, state["model"], path)
        if self.ema is not None:
            checkpoint.load_weights(self.ema.model, state["ema"], path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise RunError(f"{path} was trained with another optimizer: {error}", exit_code=2) from error
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.measured_after = state["step"], state["best"], state["measured_after"]
        # With another number of processes there is no state to go on with for each, and no exact continuation.
        if len(state["random"]) == self.ranks.count:
            checkpoint.set_random_state(state["random"][self.ranks.rank])

    def run(self) -> dict[str, Any]:
        """Train to the last step; the scores of the last measurement.

        Raises:
            RunError: a signal asked to stop (after the step, with a checkpoint; exit code 130 or 143), the loss is no
                number, or a file cannot be written.
        """
        config, ranks = self.config, self.ranks
        val_every = config.val_every or self.plan.steps_per_epoch
        scores: dict[str, Any] | None = None
        records = Records(config.out, self.step, config.tensorboard) if ranks.first else None
        progress = TrainingProgress(self.console, self.step, self.steps, config.batch_size)
        seen = begin = time.perf_counter()
        sampler = RankBatches(self.plan, self.step, self.steps, ranks.rank, ranks.count)
        with interrupt.deferred() as asked, progress, contextlib.closing(records) if records else _nothing():
            due = self.step % val_every == 0 or self.step == self.steps
            if self.step and due and self.measured_after != self.step:
                scores = self._measure_and_save(records)  # it was stopped before that
            for images, masks in self._loader(sampler):
                loss = self._train_step(images, masks, sampler.real(self.step))
                self.step += 1
                last = self.step == self.steps
                if self.step % config.log_every == 0 or last:
                    value = self._finite(loss)
                    now = time.perf_counter()
                    since = self.step % config.log_every or config.log_every
                    rate = since * config.batch_size / (now - seen)
                    seen = now
                    if records:
                        records.train(self._line(loss=value, lr=self._lr(self.step - 1), images_per_second=rate))
                    progress.report(loss=value)
                progress.advance()
                if stop := ranks.any(asked.signal):
                    self._save(LAST)
                    raise RunError(self._stopped(), exit_code=_EXIT[stop])
                if self.step % val_every == 0 or last:
                    scores = self._measure_and_save(records)
                    progress.report(miou=scores["miou"])
                    seen = time.perf_counter()
                elif self.step % config.save_every == 0:
                    self._save(LAST)
        if scores is None:  # the checkpoint was that of the last step
            scores = self._measure(None)
        self.seconds = time.perf_counter() - begin
        return scores

    def _loader(self, sampler: RankBatches) -> DataLoader[tuple[Tensor, Tensor]]:
        config = self.config
        transform = ForTraining(config, self.classes.ignore_index)
        return DataLoader(
            SeededItems(self.train_data, transform, config.seed),
            batch_sampler=sampler,
            num_workers=config.workers,
            collate_fn=batch_of,
            worker_init_fn=interrupt.ignore if config.workers else None,
            pin_memory=self.ranks.device.type == "cuda",
            # The loader draws a seed for its workers from torch's generator, which a continuation must not notice.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def _train_step(self, images: Tensor, masks: Tensor, real: int) -> Tensor:
        """One step on images [n, 3, H, W] and masks [n, H, W], of which the first `real` count; the loss, detached."""
        config, device = self.config, self.ranks.device
        self.network.train()
        if config.freeze_norm:
            _freeze_norm(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.step)
        dtype = _DTYPES.get(config.precision)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            heads = self.network(self.prepare(images, device))
            # A rank without an image of its own ran on a stand-in; its loss, of no image, still joins the others' sums.
            loss = self.loss([head[:real] for head in heads], masks[:real].to(device, non_blocking=True))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if config.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        return loss.detach()

    def _lr(self, step: int) -> float:
        config = self.config
        return config.lr * schedules.factor(config.schedule, step, self.steps, config.warmup, config.power)

    def _finite(self, loss: Tensor) -> float:
        value = float(loss)
        # With a scaler, steps whose gradient overflows are skipped, and the scale falls: if to 1, it is no overflow.
        if not math.isfinite(value) and self.scaler.get_scale() <= 1:
            raise RunError(f"the loss is {value} at step {self.step}: a lower lr, a warm-up or clip may help")
        return value

    def _measure_and_save(self, records: Records | None) -> dict[str, Any]:
        scores = self._measure(records)
        self.measured_after = self.step
        better = scores["miou"] > self.best
        self.best = max(self.best, scores["miou"])
        # In this order: a run killed in between goes on from the older last.pt, measures again and writes both.
        if better:
            self._save(BEST)
        self._save(LAST)
        return scores

    def _measure(self, records: Records | None) -> dict[str, Any]:
        self.ranks.share_buffers(self.measured)
        share = Share(self.val_data, self.ranks.rank, self.ranks.count)
        own_batch = -(-self.config.batch_size // self.ranks.count)
        prepare = replace(self.prepare, resize=self.config.resize)
        batches = batches_of_one_size(share, own_batch, self.config.workers)
        ignore, shown = self.classes.ignore_index, self.config.pictures if records else 0
        scores, pictures = measure(self.measured, batches, prepare, self.ranks, self.num_classes, ignore, shown)
        if records:
            scalars = {name: value for name, value in scores.items() if isinstance(value, float)}
            of_classes = {f"iou_{name}": iou for name, iou in zip(self.classes.names, scores["iou"], strict=True)}
            records.validate(self._line(**scalars, **of_classes))
            if pictures:
                records.picture(self.step, self._picture(pictures, scores))
        return scores

    def _picture(self, pictures: list[tuple[Tensor, Tensor, Tensor]], scores: dict[str, Any]) -> bytes:
        images, masks, predictions = (torch.stack(kind) for kind in zip(*pictures, strict=True))
        palette = torch.tensor(self.classes.palette, dtype=torch.uint8)
        masks = masks.clamp(0, len(palette) - 1)
        title = f"step {self.step}: mIoU {scores['miou']:.3f}"
        return prediction_png(images, masks, predictions, self.classes.names, palette, title)

    def _line(self, **values: float) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.step / self.plan.steps_per_epoch, **values}

    def _save(self, name: str) -> None:
        """Write a checkpoint; every rank must call it.

        Raises:
            RunError: the weights are no numbers; the old file is in place.
        """
        broken = [key for key, p in self.model.named_parameters() if not bool(p.isfinite().all())]
        if broken:
            raise RunError(
                f"{len(broken)} weights hold no numbers after step {self.step}, the first is {broken[0]}; {name} is "
                "not written: a lower lr, a warm-up or clip may help"
            )
        random = self.ranks.gathered(checkpoint.random_state())
        if not self.ranks.first:
            return
        training = {
            "step": self.step,
            "best": self.best,
            "measured_after": self.measured_after,
            "plan": dict(vars(self.plan)),
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random,
        }
        weights = self.measured.state_dict()
        content = Checkpoint(self.spec, self.classes, self.config.plain(), weights, training)
        checkpoint.save(self.config.out / name, content)

    def _stopped(self) -> str:
        path = self.config.out / LAST
        return f"interrupted after step {self.step} of {self.steps}; continue with: segops train --resume {path}"


@contextlib.contextmanager
def _nothing() -> Any:
    yield


def _described(plan: dict[str, Any]) -> str:
    return f"{plan['length']} images in batches of {plan['batch_size']} with seed {plan['seed']}"


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Scales and biases are not decayed: their size does not make a function less smooth.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _with_sync_norm(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The network with its batch norms, those in ConvNormAct included, replaced by torch's of all ranks; same keys."""
    if ranks.device.type != "cuda":
        raise RunError(
            f"sync_norm needs CUDA devices, as torch.nn.SyncBatchNorm does; this is {ranks.device}", exit_code=2
        )
    return model if ranks.count == 1 else nn.SyncBatchNorm.convert_sync_batchnorm(model, ranks.group)


def _freeze_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
