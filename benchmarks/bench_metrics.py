"""Saliency measures against PySODMetrics, maps of the size of the SOD set."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.interleave import Case, Contender, Peer
from segops.metrics import functional

# By its dtype half the digits of float32 must agree: ties of nearest pixels change the weighted F-measure.
CASE = Case("saliency_metrics of uint8 maps", (8, 321, 481))
KEYS = ("mae", "s_measure", "weighted_f", "adaptive_f", "max_f_per_image", "mean_f_per_image", "max_e", "mean_e")


def blobs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((shape[0], 1, 7, 9), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")[:, 0]
    noise = 0.1 * torch.rand(shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).byte(), (smooth > 0.6).byte() * 255


def ours(prediction: Tensor, target: Tensor) -> Tensor:
    found = functional.saliency_metrics(prediction, target)
    return torch.stack([found[key] for key in KEYS])


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
        return torch.tensor(values, dtype=torch.float64)

    return evaluate


def test_saliency(race: Callable[..., None]) -> None:
    inputs = blobs(CASE.shape)
    moved = sum(t.nbytes for t in inputs)
    race(
        CASE,
        "forward",
        inputs,
        [Contender("segops", ours), Peer("PySODMetrics", pysodmetrics)],
        reference=ours,
        own=ours,
        floor_bytes=moved,
        moved_bytes=moved,
        goals={"PySODMetrics": 5},
    )
