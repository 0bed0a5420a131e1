"""One page per operator: schema, fake, autograd and the public function."""

from segops.ops.dice_ce_loss import dice_ce_loss
from segops.ops.dice_ce_loss_deep_supervision import deep_supervision_loss

__all__ = [
    "deep_supervision_loss",
    "dice_ce_loss",
]
