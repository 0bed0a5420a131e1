"""The metrics of one batch: what update and compute of the classes give, without state."""

from segops.metrics.saliency import saliency_metrics
from segops.metrics.segmentation import segmentation_metrics

__all__ = ["saliency_metrics", "segmentation_metrics"]
