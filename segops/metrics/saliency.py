"""Saliency maps against masks of the salient objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from segops._dtypes import FLOATING
from segops._layout import check_dense
from segops.metrics.saliency_maps import Measures, Observed, f_measure, measures, observe
from segops.metrics.sums import SummedMetric
from segops.ops.saliency_maps import LEVELS

_SCALARS, _CURVES = Measures._fields[:5], Measures._fields[5:]
#: The sums: how many maps, how many of them have values that are none, the measures.
_SIZE = 2 + len(_SCALARS) + LEVELS * len(_CURVES)
#: Pixels at a time, in maps of one size that are joined.
_PIXELS = 1 << 24


class SaliencyMetrics(SummedMetric):
    """MAE, F-, weighted F-, S- and E-measures of saliency maps, as means over images.

    Args:
        normalize: stretch each prediction to [0, 1] by its own minimum and maximum, as the MATLAB tools do; one of a
            single value is left as it is.
    """

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def update(self, prediction: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> None:
        """Add maps. Never waits for a device.

        Args:
            prediction: [N, H, W], [N, 1, H, W] or [H, W], or a list of such tensors of different sizes: uint8, of
                which 255 is 1, or floating point in [0, 1].
            target: of the same shapes, a list for a list: bool, or uint8 or floating point, of which more than 128 of
                255 is foreground.

        Raises:
            TypeError: a dtype that is none of these.
            ValueError: shapes or devices that do not fit; a value of a floating-point prediction outside [0, 1], or
                NaN: on a CUDA device that is told by :meth:`compute`.
        """
        self._add(_sums(prediction, target, self.normalize, "SaliencyMetrics.update"))

    def compute(self) -> dict[str, Tensor]:
        """The dict of :func:`segops.metrics.functional.saliency_metrics`, of everything since the last reset.

        Raises:
            ValueError: there was a prediction with values outside [0, 1].
        """
        return _scores(self._sums(), "SaliencyMetrics.compute")

    def _empty(self) -> Tensor:
        return torch.zeros(_SIZE, dtype=torch.float64)


def saliency_metrics(
    prediction: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor], normalize: bool = True
) -> dict[str, Tensor]:
    """The measures of one batch of saliency maps, equal to those of PySODMetrics.

    Thresholds are 255, 254, ..., 0 of 255, and all curves come from one histogram; the F-measure has a beta squared
    of 0.3.

    Args:
        prediction, target, normalize: as :class:`segops.metrics.SaliencyMetrics` takes them.

    Returns:
        float64, on the device of the inputs:

        * mae: mean absolute error.
        * s_measure: Fan et al. 2017. Where the centre of the foreground is in the last row or column, blocks are
          empty, for which PySODMetrics has NaN: they count 0 here. A block of one value in prediction and mask counts
          1, whatever that value's mean is when rounded.
        * weighted_f: Margolin et al. 2014, with exact Euclidean distances up to 255 pixels, beyond which they change no
          float64 sum. The nearest pixel may not be unique, and the measure then depends on which is taken.
        * adaptive_f, adaptive_e: of the map beyond twice its mean.
        * precision, recall [256]: means over images.
        * max_f, mean_f: of the F-measures of these two curves (MATLAB toolboxes, SalMetric; Achanta et al. 2009).
        * max_f_per_image, mean_f_per_image: of the mean of each image's F-measures (PySODMetrics).
        * max_e, mean_e: of the mean of each image's E-measures (Fan et al. 2018).

        All are NaN for an empty batch.

    Raises:
        TypeError, ValueError: see :meth:`segops.metrics.SaliencyMetrics.update`.
    """
    return _scores(_sums(prediction, target, normalize, "saliency_metrics"), "saliency_metrics")


def _scores(sums: Tensor, name: str) -> dict[str, Tensor]:
    if bad := int(sums[1]):
        raise ValueError(f"segops.metrics.{name}: prediction must be in [0, 1]; {bad} map(s) had other values")
    scalars, curves = (sums[2:] / sums[0]).split([len(_SCALARS), LEVELS * len(_CURVES)])
    means = dict(zip(_SCALARS, scalars.unbind(), strict=True))
    means |= dict(zip(_CURVES, curves.view(-1, LEVELS).unbind(), strict=True))
    f_of_means = f_measure(means["precision"], means["recall"])
    f_curve, e_curve = means.pop("f_curve"), means.pop("e_curve")
    return means | {
        "max_f": f_of_means.max(),
        "mean_f": f_of_means.mean(),
        "max_f_per_image": f_curve.max(),
        "mean_f_per_image": f_curve.mean(),
        "max_e": e_curve.max(),
        "mean_e": e_curve.mean(),
    }


@torch.no_grad()
def _sums(prediction: Any, target: Any, normalize: bool, name: str) -> Tensor:
    """float64 [_SIZE]."""
    pairs = _checked(prediction, target, name)
    seen = []
    for maps, masks in _chunks(pairs):
        part = observe(maps, _foreground(masks), normalize)
        if maps.device.type == "cpu" and bool(part.bad.any()):
            raise ValueError(
                f"segops.metrics.{name}: prediction must be in [0, 1], got values from {float(maps.min())} to "
                f"{float(maps.max())}"
            )
        seen.append(part)
    if not seen:
        return torch.zeros(_SIZE, dtype=torch.float64, device=pairs[0][0].device)
    observed = Observed(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
    found = measures(observed)
    scalars = torch.stack([torch.ones_like(found.mae), observed.bad, *found[: len(_SCALARS)]], 1)
    return torch.cat([scalars, *found[len(_SCALARS) :]], 1).sum(0)


def _chunks(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps [n, H, W] of one size, and as many as are measured at a time; H is the shorter side.

    Each measure of a map is that of its transpose, and on a device the fewer rows the faster the distances.
    """
    groups: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        if not len(pair[0]):
            continue
        maps, masks = (t.mT if t.shape[1] > t.shape[2] else t for t in pair)
        groups.setdefault((maps.dtype, masks.dtype, *maps.shape[1:]), []).append((maps, masks))
    for (_, _, height, width), group in groups.items():
        number = max(_PIXELS // (height * width), 1)
        waiting: list[tuple[Tensor, Tensor]] = []
        for pair in group:
            for part in zip(*(t.split(number) for t in pair), strict=True):
                if waiting and sum(len(maps) for maps, _ in waiting) + len(part[0]) > number:
                    yield _joined(waiting)
                    waiting = []
                waiting.append(part)
        yield _joined(waiting)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    maps, masks = zip(*parts, strict=True)
    return torch.cat(maps), torch.cat(masks)


def _foreground(masks: Tensor) -> Tensor:
    if masks.dtype == torch.bool:
        return masks
    return masks > (128 if masks.dtype == torch.uint8 else 128 / 255)


def _checked(prediction: Any, target: Any, name: str) -> list[tuple[Tensor, Tensor]]:
    """Pairs [N, H, W]."""
    name = f"segops.metrics.{name}"
    lists = [isinstance(x, Sequence) and not isinstance(x, str) for x in (prediction, target)]
    if not any(lists):
        return [_pair(prediction, target, name, "")]
    if not all(lists):
        raise TypeError(f"{name}: prediction and target must be two tensors or two lists, got one list")
    if len(prediction) != len(target) or not prediction:
        raise ValueError(
            f"{name}: lists must be of as many maps, at least one, got {len(prediction)} and {len(target)}"
        )
    pairs = [_pair(p, t, name, f"[{i}]") for i, (p, t) in enumerate(zip(prediction, target, strict=True))]
    for i, (maps, _) in enumerate(pairs):
        if maps.device != pairs[0][0].device:
            raise ValueError(f"{name}: prediction[{i}] must be on {pairs[0][0].device} like [0], got {maps.device}")
    return pairs


def _pair(prediction: Any, target: Any, name: str, at: str) -> tuple[Tensor, Tensor]:
    for what, t, dtypes in (
        ("prediction", prediction, (torch.uint8, *FLOATING)),
        ("target", target, (torch.bool, torch.uint8, *FLOATING)),
    ):
        check_dense(name.removeprefix("segops."), f"{what}{at}", t)
        if t.dtype not in dtypes:
            expected = f"{'bool, ' if torch.bool in dtypes else ''}uint8 or floating point"
            raise TypeError(f"{name}: {what}{at} must be {expected}, got {str(t.dtype).removeprefix('torch.')}")
        fits = t.ndim in (2, 3) or (t.ndim == 4 and t.shape[1] == 1)
        if not fits or 0 in t.shape[-2:]:
            raise ValueError(
                f"{name}: {what}{at} must be [N, H, W], [N, 1, H, W] or [H, W] with at least one pixel, "
                f"got {list(t.shape)}"
            )
    if prediction.device != target.device:
        raise ValueError(f"{name}: target{at} must be on {prediction.device} like prediction, got {target.device}")
    maps, masks = ((t.squeeze(1) if t.ndim == 4 else t[None] if t.ndim == 2 else t) for t in (prediction, target))
    if maps.shape != masks.shape:
        raise ValueError(
            f"{name}: target{at} must be of prediction's shape {list(prediction.shape)}, got {list(target.shape)}"
        )
    return maps.detach(), masks
