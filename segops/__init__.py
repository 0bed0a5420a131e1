"""segops: hand-written kernels for image segmentation, exposed as PyTorch operators."""

from segops import backends, nn, ops
from segops.config import show_config
from segops.errors import check_errors, take_bad_data_count
from segops.ops.dice_ce_loss import DiceCELossParts, dice_ce_loss
from segops.ops.dice_ce_loss_deep_supervision import deep_supervision_loss

__version__ = "0.1.0"

__all__ = [
    "DiceCELossParts",
    "backends",
    "check_errors",
    "deep_supervision_loss",
    "dice_ce_loss",
    "nn",
    "ops",
    "show_config",
    "take_bad_data_count",
]
