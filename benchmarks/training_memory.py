"""Peak memory of a training step, forward and backward, of whole networks against the same in torch.nn.

    python -m benchmarks.training_memory

As benchmarks.bench_models counts it, by PyTorch's allocator and with the parameters' gradients on both sides, but at
sizes whose times would take minutes.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.bench_models import NETWORKS, Network, Step
from benchmarks.interleave import bind
from benchmarks.memory import peak_allocated

GOAL = 0.6
CASES = (("segnet", (2, 3, 180, 240)), ("unet", (2, 3, 192, 192)), ("unet", (2, 3, 384, 384)))


def compare(name: str, network: Network, size: tuple[int, int, int, int], **options: Any) -> tuple[int, int]:
    """Peaks in bytes of plain PyTorch and of segops, whose losses are equal."""
    step = Step(name, network, size, **options)
    peaks, losses = [], []
    for function in (step.plain, step.ours):
        call = bind(function, step.leaves, "forward_backward")
        losses.append(call()[0].detach())  # before the peak: the first call copies the network
        peaks.append(peak_allocated(call))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    return peaks[0], peaks[1]


def main() -> None:
    print(f"| network | images | PyTorch, MB | segops, MB | ratio (goal {GOAL}) |\n| --- | --- | --- | --- | --- |")
    for name, size in CASES:
        plain, ours = compare(name, NETWORKS[name], size)
        print(f"| {name} | {size} | {plain / 1e6:.1f} | {ours / 1e6:.1f} | {ours / plain:.3f} |", flush=True)


if __name__ == "__main__":
    main()
