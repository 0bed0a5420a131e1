"""Published networks on the layers of segops.nn, one module a family.

``create_model(name, num_classes)`` makes one, ``load_official(name, path)`` one with published weights.
"""

from segops.models.model import SegmentationModel
from segops.models.registry import convert_official_state_dict, create_model, list_models, load_official
from segops.models.summary import LayerSummary, Summary, summary

__all__ = [
    "LayerSummary",
    "SegmentationModel",
    "Summary",
    "convert_official_state_dict",
    "create_model",
    "list_models",
    "load_official",
    "summary",
]
