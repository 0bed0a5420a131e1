"""The metrics of one batch: what update and compute of the classes give, without state."""

from segops.metrics.segmentation import segmentation_metrics

__all__ = ["segmentation_metrics"]
