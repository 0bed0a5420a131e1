"""Instance segmentation: average precision by COCO's rules, and precision/recall curves at any threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from segops._layout import check_dense
from segops.metrics.instance_matching import Group, Image, Matched, groups_of, match
from segops.metrics.mask_overlaps import overlaps
from segops.metrics.segmentation import checked_classes
from segops.metrics.sums import checked_group

#: .5, .55, ..., .95 as COCO's code has them, to the last bit.
COCO_THRESHOLDS = (*(0.5 + i * ((0.95 - 0.5) / 9) for i in range(9)), 0.95)
COCO_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_RECALLS = torch.tensor([*(i * 0.01 for i in range(100)), 1.0], dtype=torch.float64)
_EPS = torch.finfo(torch.float64).eps
_ALL = (COCO_RANGES["all"],)


class InstanceAP:
    """Average precision and recall of masks, equal to those of pycocotools.

    Of each image, the IoU of all pairs is kept, not the masks.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
        iou_thresholds: COCO's .5, .55, ..., .95 by default.
        area_ranges: by name, (least, largest) area in pixels, both inclusive; COCO's all, small, medium, large by
            default. There must be "all".

    Raises:
        TypeError, ValueError: a wrong number of classes, threshold or range.
    """

    def __init__(
        self,
        num_classes: int,
        iou_thresholds: Sequence[float] = COCO_THRESHOLDS,
        area_ranges: Mapping[str, tuple[float, float]] = COCO_RANGES,
    ) -> None:
        self.num_classes = checked_classes(num_classes, "InstanceAP")
        self.iou_thresholds = tuple(_checked_threshold(t, "InstanceAP", "iou_thresholds") for t in iou_thresholds)
        if not self.iou_thresholds:
            raise ValueError("segops.metrics.InstanceAP: iou_thresholds must hold at least one, got none")
        self.area_ranges = {name: (float(low), float(high)) for name, (low, high) in area_ranges.items()}
        if "all" not in self.area_ranges:
            raise ValueError(f'segops.metrics.InstanceAP: area_ranges must hold "all", got {list(self.area_ranges)}')
        self._own: list[Image] = []
        self._of_all_ranks: list[Image] | None = None

    def reset(self) -> None:
        """Forget everything."""
        self._own, self._of_all_ranks = [], None

    def update(self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add images of any sizes. Never waits for a device.

        Args:
            predictions: for each image masks (bool [K, H, W]), scores (floating point [K]), labels (integers [K]).
            targets: for each image masks (bool [M, H, W]), labels ([M]), and if wanted iscrowd (bool or integers [M])
                and area ([M]; that of the mask by default), by which the ranges are told.

        Raises:
            TypeError, ValueError: a part that is missing or not as above; a label out of range or a score that is
                NaN, which on a CUDA device is told by :meth:`compute`. Nothing of the batch is added then.
        """
        images = images_of(predictions, targets, "InstanceAP.update")
        for image in images:
            if image.iou.device.type == "cpu":
                self._check_labels(image, "update")
        self._own = self._own + images
        self._of_all_ranks = None

    def sync(self, process_group: Any = None) -> Self:
        """Let the results be those of all ranks, until the next update or reset. Each rank must call it.

        Images come in the order of the ranks, which matters only for equal scores. What is kept of the images (no
        masks) is gathered as Python objects: the ranks of the group must be trusted, as torch's all_gather_object says.

        Args:
            process_group: of torch.distributed; the default one if None.

        Raises:
            TypeError, ValueError: not a process group, none is there, or this rank is not in it.
        """
        group = checked_group(process_group, "InstanceAP")
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, [tuple(t.cpu() for t in image) for image in self._own], group=group)
        self._of_all_ranks = [Image(*image) for images in gathered for image in images]
        return self

    def compute(self) -> dict[str, Tensor]:
        """What pycocotools' summary tells.

        Returns:
            float64 on the CPU: AP (mean over thresholds and classes), AP50, AP75, AP_NAME for each range of areas but
            "all", AR1, AR10, AR100 (at most so many detections of a class in an image), AR_NAME, and AP_per_class
            [C]. -1 where there is no object, or no such threshold.

        Raises:
            ValueError: labels out of range or scores that are NaN.
        """
        names, ranges = list(self.area_ranges), list(self.area_ranges.values())
        groups = groups_of(self._images())
        by_class: list[list[tuple[Group, Matched]]] = [[] for _ in range(self.num_classes)]
        for group, matched in zip(groups, match(groups, self.iou_thresholds, ranges), strict=True):
            by_class[group.label].append((group, matched))
        shape = (self.num_classes, len(ranges), len(self.iou_thresholds))
        precision = torch.full(shape, -1.0, dtype=torch.float64)
        recall = {n: torch.full(shape, -1.0, dtype=torch.float64) for n in (1, 10, 100)}
        for label, pairs in enumerate(by_class):
            if not pairs:
                continue
            positives = torch.stack([m.counted.sum(1) for _, m in pairs]).sum(0)  # [A]
            some = positives > 0
            at_recall, ends = _precisions(pairs, positives)
            precision[label, some] = at_recall.mean(-1)[some]
            recall[100][label, some] = ends[some]
            for most in (1, 10):
                hits = torch.stack([m.hit[..., :most].sum(-1) for _, m in pairs]).sum(0).double()
                recall[most][label, some] = (hits / positives[:, None])[some]
        every = names.index("all")
        result = {"AP": _mean(precision[:, every])}
        for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
            at = [i for i, t in enumerate(self.iou_thresholds) if t == threshold]
            result[name] = _mean(precision[:, every, at])
        result |= {f"AP_{name}": _mean(precision[:, i]) for i, name in enumerate(names) if i != every}
        result |= {f"AR{most}": _mean(values[:, every]) for most, values in recall.items()}
        result |= {f"AR_{name}": _mean(recall[100][:, i]) for i, name in enumerate(names) if i != every}
        return result | {"AP_per_class": precision[:, every].mean(-1)}

    def pr_curve(self, iou_threshold: float, label: int) -> dict[str, Tensor]:
        """Precision and recall of one class at one threshold, a point for each detection in the order of scores.

        Detections that COCO ignores (of crowds, beyond 100 in an image) have no point.

        Returns:
            On the CPU: scores, precision, recall [n] (float64), true_positive (bool [n]), objects (int64), and four
            areas below the curve, which differ on small sets: ap_step (sum of (r_k - r_(k-1)) p_k), ap_envelope (the
            same, precision made non-increasing first: PASCAL VOC 2010), ap_11_point (VOC 2007) and ap_101_point (COCO).
            With no object, recall and areas are NaN.

        Raises:
            TypeError, ValueError: a threshold outside (0, 1], a label out of range; see :meth:`compute` too.
        """
        threshold = _checked_threshold(iou_threshold, "InstanceAP.pr_curve", "iou_threshold")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_classes:
            raise ValueError(
                f"segops.metrics.InstanceAP.pr_curve: label must be an int in [0, {self.num_classes}), got {label!r}"
            )
        groups = groups_of(self._images(), label)
        matches = match(groups, (threshold,), _ALL)
        scores = torch.cat([torch.empty(0, dtype=torch.float64), *(g.scores for g in groups)])
        hit = torch.cat([torch.empty(0, dtype=torch.bool), *(m.hit[0, 0] for m in matches)])
        ignored = torch.cat([torch.empty(0, dtype=torch.bool), *(m.ignored[0, 0] for m in matches)])
        objects = torch.tensor(sum(int(m.counted.sum()) for m in matches))
        scores, order = torch.sort(scores[~ignored], descending=True, stable=True)
        hit = hit[~ignored][order]
        hits = hit.cumsum(0).double()
        precision, recall = hits / torch.arange(1, len(hit) + 1), hits / objects
        envelope = _envelope(precision)
        steps = recall.diff(prepend=recall.new_zeros(1)) if objects else recall.new_full((1,), torch.nan)
        result = {"scores": scores, "precision": precision, "recall": recall, "true_positive": hit, "objects": objects}
        for name, heights in (("ap_step", precision), ("ap_envelope", envelope)):
            result[name] = (steps * heights).sum() if objects else steps[0]
        for name, points in (("ap_11_point", _RECALLS[::10]), ("ap_101_point", _RECALLS)):
            result[name] = _sampled(envelope, recall, points).mean() if objects else steps[0]
        return result

    def matches(self, iou_threshold: float) -> list[dict[str, Tensor]]:
        """Which detections and objects of each image are found, as of :func:`.functional.instance_matches`."""
        threshold = _checked_threshold(iou_threshold, "InstanceAP.matches", "iou_threshold")
        return _of_images(self._images(), threshold)

    def _images(self) -> list[Image]:
        kept = self._own if self._of_all_ranks is None else self._of_all_ranks
        images = [Image(*(t.cpu() for t in image)) for image in kept]
        for image in images:
            self._check_labels(image, "compute")
        return images

    def _check_labels(self, image: Image, method: str) -> None:
        for what, labels in (("predictions", image.labels), ("targets", image.object_labels)):
            if bool(((labels < 0) | (labels >= self.num_classes)).any()):
                raise ValueError(
                    f"segops.metrics.InstanceAP.{method}: labels of {what} must be in [0, {self.num_classes}), got "
                    f"{labels.tolist()}"
                )
        if bool(image.scores.isnan().any()):
            raise ValueError(f"segops.metrics.InstanceAP.{method}: scores must not be NaN")


def instance_ap(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    iou_thresholds: Sequence[float] = COCO_THRESHOLDS,
    area_ranges: Mapping[str, tuple[float, float]] = COCO_RANGES,
) -> dict[str, Tensor]:
    """Average precision and recall of one batch: :meth:`segops.metrics.InstanceAP.compute` after one update.

    Lin et al., "Microsoft COCO: common objects in context" (ECCV 2014), by the rules of its evaluation code.
    """
    metric = InstanceAP(num_classes, iou_thresholds, area_ranges)
    metric.update(predictions, targets)
    return metric.compute()


def instance_matches(
    prediction: Mapping[str, Tensor], target: Mapping[str, Tensor], iou_threshold: float
) -> dict[str, Tensor]:
    """True and false positives and false negatives of one image.

    Args:
        prediction, target: one image of :meth:`segops.metrics.InstanceAP.update`.
        iou_threshold: in (0, 1].

    Returns:
        On the device of the inputs: true_positive, false_positive, ignored (bool [K]; the last: of a crowd, or beyond
        100 detections of a class), false_negative (bool [M]), matched (int64 [K], the object found, or -1), and
        the masks tp_masks, fp_masks and fn_masks [*, H, W] that they choose.

    Raises:
        TypeError, ValueError: see :meth:`segops.metrics.InstanceAP.update`.
    """
    threshold = _checked_threshold(iou_threshold, "instance_matches", "iou_threshold")
    (image,) = images_of([prediction], [target], "instance_matches")
    device = image.iou.device
    (found,) = _of_images([Image(*(t.cpu() for t in image))], threshold)
    found = {name: value.to(device) for name, value in found.items()}
    return found | {
        "tp_masks": prediction["masks"][found["true_positive"]],
        "fp_masks": prediction["masks"][found["false_positive"]],
        "fn_masks": target["masks"][found["false_negative"]],
    }


def images_of(predictions: Any, targets: Any, name: str) -> list[Image]:
    """Checked, and reduced to what is kept."""
    name = f"segops.metrics.{name}"
    for what, images in (("predictions", predictions), ("targets", targets)):
        if not isinstance(images, (list, tuple)) or not all(isinstance(image, Mapping) for image in images):
            raise TypeError(f"{name}: {what} must be a list of dicts, got {type(images).__name__}")
    if len(predictions) != len(targets):
        raise ValueError(
            f"{name}: there must be as many targets as predictions, got {len(targets)}, {len(predictions)}"
        )
    found = []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        masks = _part(prediction, "masks", f"{name}: predictions[{i}]", None)
        objects = _part(target, "masks", f"{name}: targets[{i}]", None)
        if masks.shape[1:] != objects.shape[1:] or masks.device != objects.device:
            raise ValueError(
                f"{name}: masks of targets[{i}] must be of the size and on the device of those of predictions[{i}], "
                f"{list(masks.shape[1:])} on {masks.device}, got {list(objects.shape[1:])} on {objects.device}"
            )
        scores, labels = (_part(prediction, part, f"{name}: predictions[{i}]", masks) for part in ("scores", "labels"))
        object_labels = _part(target, "labels", f"{name}: targets[{i}]", objects)
        crowd = torch.zeros_like(object_labels, dtype=torch.bool)
        if target.get("iscrowd") is not None:
            crowd = _part(target, "iscrowd", f"{name}: targets[{i}]", objects).bool()
        iou, areas, object_areas = overlaps(masks, objects, crowd)
        if target.get("area") is not None:
            object_areas = _part(target, "area", f"{name}: targets[{i}]", objects).double()
        found.append(Image(iou, scores.detach(), labels, areas, object_labels, object_areas, crowd))
    return found


def _part(image: Mapping[str, Any], part: str, where: str, masks: Tensor | None) -> Tensor:
    value: Any = image.get(part)
    check_dense(where.removeprefix("segops."), part, value)
    kind, fits = {
        "masks": ("bool", value.dtype == torch.bool),
        "scores": ("floating point", value.is_floating_point()),
        "labels": ("integers", not value.is_floating_point() and value.dtype != torch.bool),
        "iscrowd": ("bool or integers", not value.is_floating_point()),
        "area": ("numbers", value.dtype != torch.bool),
    }[part]
    if not fits or value.is_complex():
        raise TypeError(f"{where}: {part} must be {kind}, got {str(value.dtype).removeprefix('torch.')}")
    if masks is None:
        if value.ndim != 3 or 0 in value.shape[1:]:
            raise ValueError(f"{where}: masks must be [K, H, W] with at least one pixel, got {list(value.shape)}")
    elif value.shape != masks.shape[:1] or value.device != masks.device:
        raise ValueError(
            f"{where}: {part} must be [{len(masks)}] on {masks.device} like masks, got {list(value.shape)} on "
            f"{value.device}"
        )
    return value


def _of_images(images: Sequence[Image], threshold: float) -> list[dict[str, Tensor]]:
    groups = groups_of(images)
    found = []
    for image in images:
        counts, objects = (torch.zeros(len(t), dtype=torch.bool) for t in (image.labels, image.object_labels))
        found.append(
            {
                "true_positive": counts,
                "false_positive": counts.clone(),
                "ignored": ~counts,
                "false_negative": objects,
                "matched": torch.full((len(counts),), -1),
            }
        )
    for group, matched in zip(groups, match(groups, (threshold,), _ALL) if groups else (), strict=True):
        of_image, chosen = found[group.image], matched.object[0, 0]
        hit, ignored = matched.hit[0, 0], matched.ignored[0, 0]
        of_image["true_positive"][group.detections] = hit
        of_image["false_positive"][group.detections] = ~hit & ~ignored
        of_image["ignored"][group.detections] = ignored
        of_image["matched"][group.detections[chosen >= 0]] = group.objects[chosen[chosen >= 0]]
        missed = matched.counted[0].clone()
        missed[chosen[chosen >= 0]] = False
        of_image["false_negative"][group.objects] = missed
    return found


def _precisions(pairs: Sequence[tuple[Group, Matched]], positives: Tensor) -> tuple[Tensor, Tensor]:
    """Precision at COCO's 101 recalls [A, T, 101], and the last recall [A, T]."""
    order = torch.sort(torch.cat([g.scores for g, _ in pairs]), descending=True, stable=True).indices
    hit, ignored = (torch.cat([getattr(m, part) for _, m in pairs], -1)[..., order] for part in ("hit", "ignored"))
    hits, misses = hit.cumsum(-1).double(), (~hit & ~ignored).cumsum(-1).double()
    recall = hits / positives[:, None, None].clamp(min=1)
    sampled = _sampled(_envelope(hits / (hits + misses + _EPS)), recall, _RECALLS)
    return sampled, recall[..., -1] if recall.shape[-1] else recall.new_zeros(recall.shape[:-1])


def _envelope(precision: Tensor) -> Tensor:
    """Made non-increasing, from the end."""
    return precision.flip(-1).cummax(-1).values.flip(-1) if precision.shape[-1] else precision


def _sampled(envelope: Tensor, recall: Tensor, points: Tensor) -> Tensor:
    """Precision at the first recall that is at least each point, 0 where there is none."""
    index = torch.searchsorted(recall.contiguous(), points.expand(*recall.shape[:-1], -1).contiguous())
    return torch.nn.functional.pad(envelope, (0, 1)).gather(-1, index)


def _mean(values: Tensor) -> Tensor:
    """Of those that there are, or -1."""
    found = values[values > -1]
    return found.mean() if len(found) else values.new_tensor(-1.0)


def _checked_threshold(value: Any, name: str, argument: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"segops.metrics.{name}: {argument} must be numbers, got {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"segops.metrics.{name}: {argument} must be in (0, 1], got {value}")
    return float(value)
