"""One page per operator: schema, fake, autograd and the public function."""

from segops.ops.dice_ce_loss import dice_ce_loss
from segops.ops.upsample_argmax import upsample_argmax

__all__ = ["dice_ce_loss", "upsample_argmax"]
