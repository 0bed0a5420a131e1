"""README's tables from the stored results, so that no figure in it is typed: ``python -m benchmarks.readme``.

Each table stands between ``<!-- measured: name -->`` and ``<!-- end -->``. The first number of a cell is of the regime
"recycled", the second of "default"; networks have the first alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compare import DIRECTIONS, SEGOPS, table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NETWORKS = ROOT / "benchmarks" / "results" / "networks"
RESULTS = [ROOT / "benchmarks" / "results" / f"{regime}.json" for regime in ("recycled", "default")]

Record = dict[str, Any]


class Row(NamedTuple):
    """A benchmark, and what README calls it."""

    label: str
    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    direction: str = "forward"
    layout: str = "contiguous"

    def input(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"({shape}) {self.dtype}{'' if self.layout == 'contiguous' else ' channels last'}"

    def find(self, run: Sequence[Record]) -> Record | None:
        key = (self.op, list(self.shape), self.dtype, self.direction, self.layout)
        fields = ("op", "shape", "dtype", "direction", "layout")
        return next((record for record in run if tuple(record[field] for field in fields) == key), None)


TRAIN = "forward_backward"
FULL, COARSE, CITY = (4, 19, 512, 512), (4, 19, 128, 128), (1, 19, 256, 512)
CONV, CONVOLVED = "conv + norm + relu", (((2, 64, 128, 128), 2), ((1, 256, 64, 64), 4), ((1, 512, 60, 80), 2))
UP2, UP8, POOL = (4, 64, 128, 128), (4, 19, 64, 64), (4, 64, 256, 256)
LOSS = [
    Row("", "dice_ce_loss", shape, dtype, direction, layout)
    for shape, dtype, layout in (
        (FULL, "float32", "contiguous"),
        (FULL, "bfloat16", "contiguous"),
        (FULL, "float32", "channels_last"),
        ((2, 21, 513, 513), "float32", "contiguous"),
    )
    for direction in DIRECTIONS
]
OTHERS = [
    Row("coarse cross-entropy to 512 x 512", "dice_ce_loss_coarse, cross-entropy alone", COARSE, direction=TRAIN),
    Row("coarse `dice_ce_loss` to 512 x 512", "dice_ce_loss_coarse", COARSE, direction=TRAIN),
    Row("coarse `dice_ce_loss` to 1024 x 2048", "dice_ce_loss_coarse", CITY, "bfloat16", TRAIN),
    Row("`dice_bce_loss`", "dice_bce_loss", (8, 1, 512, 512), direction=TRAIN),
    Row("`dice_bce_loss`", "dice_bce_loss", (4, 14, 256, 256), direction=TRAIN),
    Row("coarse `dice_bce_loss` to 512 x 512", "dice_bce_loss", (8, 1, 128, 128), direction=TRAIN),
    Row("`upsample_argmax` x8", "upsample_argmax", UP8),
    Row("`upsample_argmax` x4", "upsample_argmax", CITY),
    Row("`upsample_bilinear2d` x2", "upsample_bilinear2d", UP2),
    Row("its gradient", "upsample_bilinear2d backward", UP2),
    Row("`upsample_bilinear2d` x8", "upsample_bilinear2d", UP8),
    Row("its gradient", "upsample_bilinear2d backward", UP8),
    Row("`upsample_cat` x2", "upsample_cat", UP2),
    Row("`max_pool2d` 2x2 with indices", "max_pool2d, 2x2", POOL),
    Row("its gradient", "max_pool2d, 2x2, backward", POOL),
    Row("`max_pool2d` 3x3, stride 2", "max_pool2d, 3x3 stride 2", POOL),
    Row("its gradient", "max_pool2d, 3x3 stride 2, backward", POOL),
    Row("`max_unpool2d` 2x2", "max_unpool2d, 2x2", POOL),
    Row("its gradient", "max_unpool2d, 2x2, backward", POOL),
    Row("`max_unpool2d`, int64 indices", "max_unpool2d, int64 indices", POOL),
    *(
        Row(f"`dilated_conv2d` + norm + ReLU, dilation {dilation}{', fast' * fast}", CONV + ", fast" * fast, shape)
        for shape, dilation in CONVOLVED
        for fast in (False, True)
    ),
    Row("its input gradient", "conv, grad_input", CONVOLVED[0][0]),
    Row("`confusion_matrix`", "confusion_matrix", FULL),
    Row("`confusion_matrix`", "confusion_matrix", FULL, "bfloat16"),
    Row("`confusion_matrix` of label maps", "confusion_matrix of label maps", FULL, "int64"),
    Row("`confusion_matrix` of label maps", "confusion_matrix of label maps", FULL, "uint8"),
]


def is_eager(name: str) -> bool:
    return "eager" in name and "channels_last" not in name


def is_channels_last(name: str) -> bool:
    return "eager" in name and "channels_last" in name


def is_compiled(name: str) -> bool:
    return name.startswith("compiled")


def exactly(name: str) -> Callable[[str], bool]:
    return lambda other: other == name


#: A column is what it is called and which contenders it is about; the fastest of them counts.
LOSS_COLUMNS = {
    "eager (one-hot Dice + cross-entropy)": exactly("eager"),
    "eager, channels_last": exactly("eager, channels_last"),
    "leanest eager (gather)": exactly("leanest eager"),
    "torch.compile": is_compiled,
    "MONAI": exactly("MONAI"),
    "torch's cross-entropy alone": exactly("cross-entropy alone"),
}
OTHER_COLUMNS = {"eager, NCHW": is_eager, "eager, channels_last": is_channels_last, "torch.compile": is_compiled}


NETWORK_COLUMNS = OTHER_COLUMNS | {"ONNX Runtime": exactly("ONNX Runtime"), "OpenVINO": exactly("OpenVINO")}


def number(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def cell(runs: Sequence[Sequence[Record]], row: Row, among: Callable[[str], bool]) -> str:
    found = []
    for run in runs:
        record = row.find(run)
        contenders = record["contenders"].items() if record else ()
        ratios = [c["ratio"] for name, c in contenders if name != SEGOPS and "ratio" in c and among(name)]
        found.append(number(min(ratios)) if ratios else "-")
    return "-" if set(found) == {"-"} else " / ".join(found)


def loss_table(runs: Sequence[Sequence[Record]]) -> str:
    rows = [
        [row.input(), DIRECTIONS[row.direction], *(cell(runs, row, among) for among in LOSS_COLUMNS.values())]
        for row in LOSS
    ]
    return table(["case", "direction", *LOSS_COLUMNS], rows)


def other_table(runs: Sequence[Sequence[Record]]) -> str:
    rows = []
    for row in OTHERS:
        direction = "backward" if row.op.endswith(("backward", "grad_input")) else DIRECTIONS[row.direction]
        where = f"{row.input()}, {direction}"
        rows.append([row.label, where, *(cell(runs, row, among) for among in OTHER_COLUMNS.values())])
    return table(["operator", "input", *OTHER_COLUMNS], rows)


def network_table(networks: Sequence[Record]) -> str:
    rows = []
    for record in networks:
        name, what = record["op"].split(", ", 1)
        row = Row(f"`{name}`", record["op"], tuple(record["shape"]), direction=record["direction"])
        ratios = [cell([networks], row, among) for among in NETWORK_COLUMNS.values()]
        rows.append([row.label, row.input(), what, *ratios])
    return table(["network", "images", "what", *NETWORK_COLUMNS], rows)


def filled(text: str, runs: Sequence[Sequence[Record]], networks: Sequence[Record]) -> str:
    """`text` with the tables of `runs`, and of the `networks`."""
    tables = {"loss": loss_table(runs), "others": other_table(runs), "networks": network_table(networks)}
    for name, made in tables.items():
        pattern = rf"(<!-- measured: {name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, lambda m, made=made: m[1] + made + m[2], text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README has {count} tables named {name}, expected one")
    return text


def stored() -> list[list[Record]]:
    return [_records(path) for path in RESULTS]


def stored_networks() -> list[Record]:
    return [record for path in sorted(NETWORKS.glob("*.json")) for record in _records(path)]


def _records(path: Path) -> list[Record]:
    return [b["extra_info"] for b in json.loads(path.read_text())["benchmarks"]]


def main() -> int:
    README.write_text(filled(README.read_text(), stored(), stored_networks()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
