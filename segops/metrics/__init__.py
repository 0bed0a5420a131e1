"""Metrics that accumulate: update with batches, compute a dict, reset, and sync over the ranks of a process group."""

from segops.metrics import functional
from segops.metrics.instance import InstanceAP
from segops.metrics.saliency import SaliencyMetrics
from segops.metrics.segmentation import SegmentationMetrics

__all__ = ["InstanceAP", "SaliencyMetrics", "SegmentationMetrics", "functional"]
