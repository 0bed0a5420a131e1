"""What tests of the engine run in processes of their own: python -m tests.engine.processes KIND FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segops.engine.losses import TrainingLoss
from segops.engine.output import RunError
from segops.engine.ranks import started
from tests.engine import toy

LENGTH = 9  # of the training data: in batches of 4, the last of an epoch leaves ranks without an image


def train(folder: Path) -> None:
    """A checkpoint after every step."""
    run = toy.trainer(toy.config(folder, steps=2000, save_every=1, val_every=2000))
    if (folder / "last.pt").exists():
        run.resume(folder / "last.pt")
    print("ready", flush=True)
    run.run()


def die_while_writing(folder: Path) -> None:
    """Two checkpoints, and in the middle of the third nothing any more."""
    fsync = os.fsync
    written = 0

    def fsync_or_die(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == 5:  # file and folder of each
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die
    toy.trainer(toy.config(folder, save_every=1, val_every=100)).run()


def ranks(folder: Path) -> None:
    """A training whose ranks must be one: no batch norm and no dropout, which see a rank's images alone."""
    with started("cpu") as these:
        torch.manual_seed(0)
        model = toy.Toy(norm=False, dropout=0)
        torch.manual_seed(these.rank)  # of ranks that are not told otherwise
        settings = toy.config(folder, crop=(8, 12), ema=0.9)
        scores = toy.trainer(settings, model.double(), LENGTH, ranks=these).run()
        torch.save(scores, folder / f"scores{these.rank}.pt")
        # Of five images ranks have unequal shares; of two, the third has none.
        losses = [saliency_loss(images, these.rank, these.count, these.group) for images in (5, 2)]
        torch.save(losses, folder / f"losses{these.rank}.pt")


def saliency_loss(images: int, rank: int = 0, count: int = 1, group: Any = None) -> tuple[Tensor, Tensor]:
    """BASNet's loss of a rank's share of some maps, and its gradient by a factor of the logits."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(8, images, 1, 6, 8, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 2, (images, 12, 16), generator=generator)
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = TrainingLoss(toy.config(Path(), loss="basnet"), 1, None, process_group=group)
    value = loss([factor * head[rank::count] for head in logits], masks[rank::count])
    value.backward()
    assert factor.grad is not None
    return value.detach(), factor.grad


def dead_rank(folder: Path) -> None:
    """The last rank is killed in its third step, or the one that DEAD_RANK names."""
    with started("cpu") as these:
        run = toy.trainer(toy.config(folder, save_every=1), toy.Toy(norm=False), LENGTH, ranks=these)
        if these.rank == int(os.environ.get("DEAD_RANK", these.count - 1)):
            train_step = run._train_step

            def die(*arguments: object) -> torch.Tensor:
                if run.step == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return train_step(*arguments)  # type: ignore[arg-type]

            run._train_step = die  # type: ignore[method-assign]
        run.run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]))
    except RunError as error:
        print(f"segops: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
