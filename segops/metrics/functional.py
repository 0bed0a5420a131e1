"""The metrics of one batch: what update and compute of the classes give, without state."""

from segops.metrics.instance import instance_ap, instance_matches
from segops.metrics.saliency import saliency_metrics
from segops.metrics.segmentation import segmentation_metrics

__all__ = ["instance_ap", "instance_matches", "saliency_metrics", "segmentation_metrics"]
