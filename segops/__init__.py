"""segops: hand-written kernels for image segmentation, exposed as PyTorch operators."""

from segops import backends, metrics, models, nn, onnx, ops
from segops.config import show_config
from segops.conversion import convert, revert
from segops.errors import check_errors, take_bad_data_count
from segops.ops.confusion_matrix import confusion_matrix
from segops.ops.deep_supervision_loss import deep_supervision_loss
from segops.ops.dice_bce_loss import DiceBCELossParts, dice_bce_loss
from segops.ops.dice_ce_loss import DiceCELossParts, dice_ce_loss
from segops.ops.dilated_conv import dilated_conv2d
from segops.ops.max_unpool import flat_to_local_indices, local_to_flat_indices, max_pool2d, max_unpool2d
from segops.ops.upsample_argmax import upsample_argmax
from segops.ops.upsample_bilinear import upsample_bilinear2d, upsample_cat
from segops.ops.upsample_nearest import bed_of_nails2d, upsample_nearest2d
from segops.prediction import predict

__version__ = "0.1.0"

__all__ = [
    "DiceBCELossParts",
    "DiceCELossParts",
    "backends",
    "bed_of_nails2d",
    "check_errors",
    "confusion_matrix",
    "convert",
    "deep_supervision_loss",
    "dice_bce_loss",
    "dice_ce_loss",
    "dilated_conv2d",
    "flat_to_local_indices",
    "local_to_flat_indices",
    "max_pool2d",
    "max_unpool2d",
    "metrics",
    "models",
    "nn",
    "onnx",
    "ops",
    "predict",
    "revert",
    "show_config",
    "take_bad_data_count",
    "upsample_argmax",
    "upsample_bilinear2d",
    "upsample_cat",
    "upsample_nearest2d",
]
