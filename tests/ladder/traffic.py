"""What the kernels of dice_ce_loss move, counted by the host execution: ``python -m tests.ladder.traffic``.

Sectors of 32 bytes are counted request by request, as the memory system sees them before any cache: what a warp reads
twice counts twice, and a row that begins within a sector costs that sector at both of its ends. The floor is what has
to be moved: forward, logits and labels once; backward, the same and the gradient once. Bank conflicts are wavefronts of
shared memory beyond the first of a request (of a half or a quarter of it for accesses of 8 and 16 bytes).
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.ladder import driver

SECTOR = 32
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
CLASSES = (3, 19, 32, 150)
PIXELS = 32768
ODD_PIXELS = 181 * 181  # planes that begin anywhere, of nearly as many pixels
LABEL_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Config:
    dtype: str
    classes: int
    layout: str
    aligned: bool = True

    @property
    def pixels(self) -> int:
        return PIXELS if self.aligned else ODD_PIXELS

    @property
    def line(self) -> str:
        return driver.case(dtype=self.dtype, c=self.classes, s=self.pixels, layout=self.layout, offset=not self.aligned)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One kernel's share; bytes are those of whole sectors."""

    kernel: str
    read: int
    written: int
    read_floor: int
    written_floor: int
    requests: int  # of shared memory, reads and writes
    wavefronts: int
    conflicts: int

    @property
    def read_ratio(self) -> float:
        return self.read / self.read_floor if self.read_floor else 0.0

    @property
    def written_ratio(self) -> float:
        return self.written / self.written_floor if self.written_floor else 0.0

    @property
    def conflicts_per_request(self) -> float:
        return self.conflicts / self.requests if self.requests else 0.0


CONFIGS = [
    *(Config(*choice) for choice in itertools.product(("float32", "bfloat16"), CLASSES, ("planar", "channels_last"))),
    *(Config(*choice, aligned=False) for choice in itertools.product(("float32", "bfloat16"), CLASSES, ("planar",))),
    *(Config(dtype, 19, "channels_last", aligned=False) for dtype in ("float32", "bfloat16")),
]


def measure(program: Path, config: Config) -> dict[str, Traffic]:
    """Traffic of each kernel of forward and backward, by "forward", "combine" and "backward"."""
    logits = config.classes * config.pixels * BYTES[config.dtype]
    labels = config.pixels * LABEL_BYTES
    floors = {"forward": (logits + labels, 0), "combine": (0, 0), "backward": (logits + labels, logits)}
    result = {}
    for counts in driver.counters(program, config.line):
        name = counts["kernel"].strip("()").removeprefix("dice_ce_loss_").partition("<")[0].removesuffix("_kernel")
        step = name.removesuffix("_sweep")
        if step not in floors:
            continue
        shared = [counts["shared_read"], counts["shared_write"]]
        result[step] = Traffic(
            name,
            SECTOR * counts["global_read"]["sectors"],
            SECTOR * counts["global_write"]["sectors"],
            *floors[step],
            *(sum(part[key] for part in shared) for key in ("requests", "wavefronts", "conflicts")),
        )
    return result


def rows(program: Path) -> Iterator[str]:
    yield (
        "| kernel | dtype | C | layout | read, bytes | / floor | written, bytes | / floor "
        "| shared wavefronts | conflicts per request |"
    )
    yield "|---|---|---:|---|---:|---:|---:|---:|---:|---:|"
    for config in CONFIGS:
        layout = config.layout + ("" if config.aligned else ", unaligned")
        for traffic in measure(program, config).values():
            ratios = [
                f"{ratio:.3f}" if floor else "-"
                for ratio, floor in (
                    (traffic.read_ratio, traffic.read_floor),
                    (traffic.written_ratio, traffic.written_floor),
                )
            ]
            yield (
                f"| {traffic.kernel} | {config.dtype} | {config.classes} | {layout} | {traffic.read} | {ratios[0]} "
                f"| {traffic.written} | {ratios[1]} | {traffic.wavefronts} | {traffic.conflicts_per_request:.3f} |"
            )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = driver.build("race", Path(folder))
        print(f"dice_ce_loss, one image of {PIXELS} pixels ({ODD_PIXELS} unaligned), int64 labels\n")
        for row in rows(program):
            print(row, flush=True)


if __name__ == "__main__":
    main()
