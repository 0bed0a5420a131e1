"""What training minimises: segops' losses of a network's logits at the size it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from segops.engine.config import TrainConfig
from segops.engine.output import RunError
from segops.models import SegmentationModel
from segops.ops.deep_supervision_loss import deep_supervision_loss


class Heads(nn.Module):
    """A network whose forward returns all logits that training needs, finest first, none of them upsampled.

    Of a network that is no :class:`segops.models.SegmentationModel` these are its outputs: a tensor, a list of them,
    or the values of a mapping, such as torchvision's {"out", "aux"}.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        if isinstance(self.model, SegmentationModel):
            return self.model.coarse_logits(images, side_outputs=True)
        output = self.model(images)
        if isinstance(output, Tensor):
            return [output]
        return list(output.values() if isinstance(output, Mapping) else output)


class TrainingLoss:
    """The loss of a configuration.

    Args:
        config: its part "Loss".
        num_classes: K of the logits; the sigmoid loss is for one.
        ignore_index: label of pixels that count nowhere, or None.
        align_corners: of the interpolation that coarse logits stand for.
        class_weights: [K] of the cross-entropy, or None.
        process_group: whose ranks share a batch, or None.

    Raises:
        RunError: a loss or weights that do not fit the number of classes.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        ignore_index: int | None,
        align_corners: bool = False,
        class_weights: Tensor | None = None,
        process_group: Any = None,
    ) -> None:
        self.kind = config.loss
        if self.kind == "auto":
            self.kind = "dice_bce" if num_classes == 1 else "dice_ce"
        if (self.kind == "dice_bce") != (num_classes == 1):
            wanted = "one class" if self.kind == "dice_bce" else "two or more classes"
            raise RunError(f"loss {self.kind!r} is for {wanted}, the network has {num_classes}", exit_code=2)
        self.side_weights = config.side_weights
        self.options: dict[str, Any] = {
            "dice_weight": config.dice_term,
            "batch_dice": config.batch_dice,
            "align_corners": align_corners,
            "process_group": process_group,
        }
        if self.kind == "dice_ce":
            self.options["ce_weight"] = config.pixel_term
            self.options["label_smoothing"] = config.label_smoothing
            self.options["weight"] = class_weights
            if ignore_index is not None:
                self.options["ignore_index"] = ignore_index
            return
        if config.label_smoothing or class_weights is not None:
            raise RunError("label_smoothing and class_weights are of the softmax loss, not of one class", exit_code=2)
        self.options["bce_weight"] = config.pixel_term
        self.options["ignore_index"] = ignore_index

    def __call__(self, heads: Sequence[Tensor], masks: Tensor) -> Tensor:
        """The loss of heads [N, K, h, w], finest first, against labels int64 [N, H, W]."""
        weights = self.side_weights or (1.0,) * len(heads)
        if len(weights) != len(heads):
            raise RunError(
                f"side_weights must be {len(heads)} numbers for this network, got {len(weights)}", exit_code=2
            )
        if self.kind == "dice_bce":
            masks = masks.float()[:, None]  # not uint8, in which labels out of range would become others
        return cast(Tensor, deep_supervision_loss(list(heads), masks, weights, loss=self.kind, **self.options))
