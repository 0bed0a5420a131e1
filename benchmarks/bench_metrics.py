"""Metrics against their peers: PySODMetrics, with maps of the size of the SOD set, pycocotools and torchmetrics."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.interleave import Case, Contender, Peer
from segops.metrics import functional
from tests.metrics.test_instance import NAMES, by_pycocotools, encoded, scenes

# By its dtype half the digits of float32 must agree: ties of nearest pixels change the weighted F-measure.
CASE = Case("saliency_metrics of uint8 maps", (8, 321, 481))
KEYS = ("mae", "s_measure", "weighted_f", "adaptive_f", "max_f_per_image", "mean_f_per_image", "max_e", "mean_e")


def blobs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((shape[0], 1, 7, 9), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")[:, 0]
    noise = 0.1 * torch.rand(shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).byte(), (smooth > 0.6).byte() * 255


def measure(
    race: Callable[..., None],
    case: Case,
    inputs: Sequence[Tensor],
    ours: Callable[..., Tensor],
    peers: Sequence[Peer],
    goal: float,
) -> None:
    """A metric reads its inputs once; its peers are what tells that it is right. The goal is against the first."""
    moved = sum(t.nbytes for t in inputs)
    race(
        case,
        "forward",
        inputs,
        [Contender("segops", ours), *peers],
        reference=ours,
        own=ours,
        floor_bytes=moved,
        moved_bytes=moved,
        goals={peers[0].name: goal},
    )


def ours(prediction: Tensor, target: Tensor) -> Tensor:
    found = functional.saliency_metrics(prediction, target)
    return torch.stack([found[key] for key in KEYS]).float()


def pysodmetrics() -> Callable[..., Tensor]:
    import py_sod_metrics as sod

    def evaluate(prediction: Tensor, target: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metrics = [sod.MAE(), sod.Smeasure(), sod.WeightedFmeasure(), sod.Fmeasure(), sod.Emeasure()]
        for p, t in zip(prediction.numpy(), target.numpy(), strict=True):
            for metric in metrics:
                metric.step(p, t)
        mae, s, w, f, e = (metric.get_results() for metric in metrics)
        f, e = f["fm"], e["em"]["curve"]
        values = [mae["mae"], s["sm"], w["wfm"], f["adp"], f["curve"].max(), f["curve"].mean(), e.max(), e.mean()]
        return torch.tensor(values, dtype=torch.float32)

    return evaluate


def test_saliency(race: Callable[..., None]) -> None:
    measure(race, CASE, blobs(CASE.shape), ours, [Peer("PySODMetrics", pysodmetrics)], 5)


@pytest.mark.parametrize("of", ["logits", "label maps"])
def test_segmentation(of: str, race: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    classes, shape = 19, (4, 512, 512)
    target = torch.randint(0, classes, shape, generator=generator)
    target[:, :8] = 255
    logits = torch.randn(shape[0], classes, *shape[1:], generator=generator)
    prediction = logits if of == "logits" else logits.argmax(1)

    def ours(prediction: Tensor, target: Tensor) -> Tensor:
        return functional.segmentation_metrics(prediction, target, classes, ignore_index=255)["iou"]

    def torchmetrics() -> Callable[..., Tensor]:
        from torchmetrics.functional.classification import multiclass_confusion_matrix as confusion_matrix

        def evaluate(prediction: Tensor, target: Tensor) -> Tensor:
            # Without its checks of the labels, which would read them once more.
            confusion = confusion_matrix(prediction, target, classes, ignore_index=255, validate_args=False).double()
            hits = confusion.diagonal()
            return hits / (confusion.sum(0) + confusion.sum(1) - hits)

        return evaluate

    case = Case(f"segmentation_metrics of {of}", tuple(prediction.shape), prediction.dtype)
    measure(race, case, (prediction, target), ours, [Peer("torchmetrics", torchmetrics)], 1)


def test_instances(race: Callable[..., None]) -> None:
    """pycocotools from masks, as segops gets them, and from masks that were encoded before the clock starts."""
    classes, size = 3, (480, 640)
    images = scenes(0, 20, classes, size)
    counts = [[len(image["masks"]) for image in part] for part in images]
    masks = [torch.cat([image["masks"] for image in part]) for part in images]

    def with_masks(*masks: Tensor) -> list[list[dict[str, Tensor]]]:
        return [
            [image | {"masks": own} for image, own in zip(part, all_masks.split(lengths), strict=True)]
            for part, all_masks, lengths in zip(images, masks, counts, strict=True)
        ]

    def ours(*masks: Tensor) -> Tensor:
        found = functional.instance_ap(*with_masks(*masks), classes)
        return torch.stack([found[name] for name in NAMES])

    def pycocotools(before: bool) -> Callable[..., Tensor]:
        ready = encoded(*images, classes) if before else None

        def evaluate(*masks: Tensor) -> Tensor:
            with contextlib.redirect_stdout(io.StringIO()):
                found = by_pycocotools(*(ready or encoded(*with_masks(*masks), classes)))
            return torch.tensor([found[name] for name in NAMES], dtype=torch.float64)

        return evaluate

    peers = [
        Peer("pycocotools", lambda: pycocotools(False)),
        Peer("pycocotools, masks encoded before", lambda: pycocotools(True)),
    ]
    measure(race, Case("instance_ap of masks", (20, *size)), masks, ours, peers, 1)
