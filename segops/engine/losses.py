"""What training minimises: segops' losses of a network's logits at the size it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segops.engine.config import TrainConfig
from segops.engine.output import RunError
from segops.models import SegmentationModel
from segops.nn import BASNetLoss, OhemCrossEntropy
from segops.ops.deep_supervision_loss import deep_supervision_loss

_NO_LABEL = -100  # as torch has it: no class has this number


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
        num_classes: K of the logits; dice_bce, u2net and basnet are for one.
        ignore_index: label of pixels that count nowhere, or None.
        align_corners: of the interpolation that coarse logits stand for.
        class_weights: [K] of the cross-entropy, or None.
        process_group: whose ranks share a batch, or None. The loss is that of the whole batch; of "ohem", whose hard
            pixels each rank picks among its own, the mean of the ranks' by their images.

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
        self.options: dict[str, Any]
        self.kind: str = config.loss
        if self.kind == "auto":
            self.kind = "dice_bce" if num_classes == 1 else "dice_ce"
        of_one = self.kind in ("dice_bce", "u2net", "basnet")
        if of_one != (num_classes == 1):
            wanted = "one class" if of_one else "two or more classes"
            raise RunError(f"loss {self.kind!r} is for {wanted}, the network has {num_classes}", exit_code=2)
        if of_one and (config.label_smoothing or class_weights is not None):
            raise RunError("label_smoothing and class_weights are of the softmax loss, not of one class", exit_code=2)
        self.side_weights = config.side_weights
        self.process_group = process_group
        if self.kind == "ohem":
            self.options = {
                "threshold": config.ohem_threshold,
                "min_kept": config.ohem_min_kept,
                "weight": class_weights,
                "ignore_index": _NO_LABEL if ignore_index is None else ignore_index,
                "align_corners": align_corners,
            }
            return
        if self.kind == "basnet":
            self.options = {}
            if align_corners:
                raise RunError("loss 'basnet' is for logits interpolated without align_corners", exit_code=2)
            return
        self.options = {
            "dice_weight": 0.0 if self.kind == "u2net" else config.dice_term,
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
        self.options["bce_weight"] = config.pixel_term
        self.options["ignore_index"] = ignore_index

    def __call__(self, heads: Sequence[Tensor], masks: Tensor) -> Tensor:
        """The loss of heads [N, K, h, w], finest first, against labels int64 [N, H, W]."""
        weights = self.side_weights or (1.0,) * len(heads)
        if len(weights) != len(heads):
            raise RunError(
                f"side_weights must be {len(heads)} numbers for this network, got {len(weights)}", exit_code=2
            )
        if self.kind == "ohem":
            return self._of_all_ranks(OhemCrossEntropy(head_weights=weights, **self.options), heads, masks)
        if self.kind != "dice_ce":
            masks = masks.float()[:, None]  # not uint8, in which labels out of range would become others
        if self.kind == "basnet":
            return self._of_all_ranks(BASNetLoss(weights).to(masks.device), heads, masks)
        loss = "dice_ce" if self.kind == "dice_ce" else "dice_bce"
        return cast(Tensor, deep_supervision_loss(list(heads), masks, weights, loss=loss, **self.options))

    def _of_all_ranks(self, loss: nn.Module, heads: Sequence[Tensor], masks: Tensor) -> Tensor:
        """The mean of the ranks' losses by their images; its gradient, averaged over the ranks, is that of the mean."""
        own = len(masks)
        # Without an image of its own a rank still has to take part in the backward pass.
        mean = loss(list(heads), masks) if own else torch.stack([head.sum() for head in heads]).sum()
        if self.process_group is None:
            return cast(Tensor, mean)
        shared = torch.stack([mean.detach() * own, mean.new_tensor(own)])
        dist.all_reduce(shared, group=self.process_group)
        total, images = shared
        part = mean * (own * dist.get_world_size(self.process_group) / images)
        return part + (total / images - part).detach()  # the value is the same for all
