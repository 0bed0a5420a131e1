"""Peak memory of a training step, forward and backward, of whole networks against the same in torch.nn.

    python -m benchmarks.training_memory

Counted by PyTorch's allocator, beyond parameters and inputs; the gradients of the parameters are in it on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak_allocated
from segops import dice_ce_loss, models
from tests.models.plain.segnet import CAFFE, SegNet
from tests.models.plain.unet import UNet

CLASSES = 11
GOAL = 0.6
CASES: tuple[tuple[str, Callable[[], nn.Module], tuple[int, int, int, int]], ...] = (
    ("segnet", lambda: SegNet(CLASSES, CAFFE), (2, 3, 180, 240)),
    ("unet", lambda: UNet(CLASSES), (2, 3, 192, 192)),
    ("unet", lambda: UNet(CLASSES), (2, 3, 384, 384)),
)


def compare(
    name: str, build: Callable[[], nn.Module], size: tuple[int, int, int, int], **options: Any
) -> tuple[int, int]:
    """Peaks in bytes of plain PyTorch and of segops, whose losses are equal."""
    torch.manual_seed(0)
    plain = build().train()
    ours = models.create_model(name, CLASSES, **options).train()
    ours.load_state_dict(models.convert_official_state_dict(name, plain.state_dict()))
    images, target = torch.randn(size), torch.randint(0, CLASSES, (size[0], *size[2:]))
    losses: list[Tensor] = []

    def step(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        losses.append(loss(model(images)))
        losses[-1].backward()
        losses[-1] = losses[-1].detach()

    plain_peak = peak_allocated(lambda: step(plain, lambda logits: F.cross_entropy(logits, target)))
    ours_peak = peak_allocated(lambda: step(ours, lambda logits: dice_ce_loss(logits, target, dice_weight=0.0)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    return plain_peak, ours_peak


def main() -> None:
    print(f"| network | images | PyTorch, MB | segops, MB | ratio (goal {GOAL}) |\n| --- | --- | --- | --- | --- |")
    for name, build, size in CASES:
        plain, ours = compare(name, build, size)
        print(f"| {name} | {size} | {plain / 1e6:.1f} | {ours / 1e6:.1f} | {ours / plain:.3f} |", flush=True)


if __name__ == "__main__":
    main()
