"""One page per operator: schema, fake, autograd and the public function."""

from segops.ops.confusion_matrix import confusion_matrix
from segops.ops.deep_supervision_loss import deep_supervision_loss
from segops.ops.dice_bce_loss import dice_bce_loss
from segops.ops.dice_ce_loss import dice_ce_loss
from segops.ops.dilated_conv import dilated_conv2d
from segops.ops.max_unpool import flat_to_local_indices, local_to_flat_indices, max_pool2d, max_unpool2d
from segops.ops.upsample_argmax import upsample_argmax
from segops.ops.upsample_bilinear import upsample_bilinear2d, upsample_cat
from segops.ops.upsample_nearest import bed_of_nails2d, upsample_nearest2d

__all__ = [
    "bed_of_nails2d",
    "confusion_matrix",
    "deep_supervision_loss",
    "dice_bce_loss",
    "dice_ce_loss",
    "dilated_conv2d",
    "flat_to_local_indices",
    "local_to_flat_indices",
    "max_pool2d",
    "max_unpool2d",
    "upsample_argmax",
    "upsample_bilinear2d",
    "upsample_cat",
    "upsample_nearest2d",
]
