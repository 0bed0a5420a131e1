"""What single networks were trained with, where :func:`segops.dice_ce_loss` and its siblings do not say it alone.

The others are options of those:

* FCN: ``DiceCELoss(dice_weight=0, reduction="sum", ignore_index=255)``, the cross-entropy summed over all pixels, with
  learning rates to match (1e-10 for "fcn32s"; Long et al. 2015).
* SegNet: ``DiceCELoss(dice_weight=0, weight=weights, ignore_index=11)`` with the median-frequency weights of
  :mod:`segops.data` (Badrinarayanan et al. 2015).
* U-Net: ``DiceCELoss(dice_weight=0)(logits, target, pixel_weight)`` with :func:`segops.data.border_weights`
  (Ronneberger et al. 2015).
* HRNet: ``DiceCELoss(dice_weight=0, ignore_index=255)``; with OCR, ``DeepSupervisionLoss((1, 0.4), dice_weight=0,
  ignore_index=255)`` of the output and the auxiliary one, in this order; or :class:`OhemCrossEntropy` (Wang et al.
  2020).
* Dilated convolutions, DRN: as HRNet without OCR.
* U2-Net: :class:`segops.nn.U2NetLoss`; BASNet: :class:`segops.nn.BASNetLoss`.
* CSNet: ``DiceBCELoss(dice_weight=0)`` plus :class:`DynamicWeightDecay`.
* The stacked hourglass: :class:`HeatmapLoss` by :func:`segops.data.gaussian_heatmaps`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segops.ops.dice_ce_loss import dice_ce_loss


class HeatmapLoss(nn.Module):
    """The mean squared error of the heat maps of each stack, summed over stacks: intermediate supervision.

    Newell et al., "Stacked Hourglass Networks for Human Pose Estimation" (2016). What takes the mean over the stacks
    instead has the weights 1 / stacks.

    Args:
        weights: one number for each stack; None for ones.

    Shape:
        heatmaps [N, stacks, K, h, w], or a list of [N, K, h, w] such as ``model.coarse_logits(images,
        side_outputs=True)`` of "hourglass8"; target [N, K, h, w]. Returns the loss, 0-dimensional.

    Raises:
        ValueError: heat maps and target of different shapes, or another number of stacks than of weights.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.weights = None if weights is None else list(weights)

    def forward(self, heatmaps: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        stacks = heatmaps.unbind(1) if isinstance(heatmaps, Tensor) else list(heatmaps)
        weights = [1.0] * len(stacks) if self.weights is None else self.weights
        if not stacks or len(stacks) != len(weights):
            raise ValueError(
                f"segops.nn.HeatmapLoss: heatmaps must be of {len(weights) or 'one or more'} stacks, got {len(stacks)}"
            )
        for i, stack in enumerate(stacks):
            if stack.shape != target.shape:
                raise ValueError(
                    f"segops.nn.HeatmapLoss: heat maps {i} must be {list(target.shape)} like target, "
                    f"got {list(stack.shape)}"
                )
        losses = [weight * F.mse_loss(stack, target) for stack, weight in zip(stacks, weights, strict=True)]
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        return f"weights={self.weights!r}"


class OhemCrossEntropy(nn.Module):
    """The mean cross-entropy of the hard pixels: online hard example mining.

    Hard is a pixel whose class has a probability below `threshold`; where fewer than `min_kept` are, the `min_kept`
    hardest (Shrivastava et al. 2016, as HRNet has it: the probability of the pixel number `min_kept`, counted from
    zero by increasing probability, is the threshold if it is the larger). Without a hard pixel the loss is zero. Coarse
    logits stand for their bilinear interpolation, which is never in memory. Nothing waits for a device.

    Args:
        threshold: in (0, 1], of the probability.
        min_kept: >= 1, pixels of the batch.
        weight: [C], multiplies the cross-entropy of each pixel by that of its class; the mean is over the number of
            pixels all the same. A buffer that is not saved with the model.
        ignore_index: label of pixels that count nowhere.
        head_weights: one number for each of several logits, in their order: by default the output and the auxiliary
            one of HRNet with OCR.
        align_corners: of the interpolation of coarse logits.

    Shape:
        logits [N, C, h, w], or a list of them with `head_weights`; target [N, H, W]. Returns the loss, 0-dimensional.

    Raises:
        TypeError, ValueError: as :func:`segops.dice_ce_loss`, and for options out of range.
    """

    weight: Tensor | None

    def __init__(
        self,
        threshold: float = 0.9,
        min_kept: int = 131072,
        *,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        head_weights: Sequence[float] = (1.0, 0.4),
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f"segops.nn.OhemCrossEntropy: threshold must be in (0, 1], got {threshold!r}")
        if isinstance(min_kept, bool) or not isinstance(min_kept, int) or min_kept < 1:
            raise ValueError(f"segops.nn.OhemCrossEntropy: min_kept must be a positive int, got {min_kept!r}")
        self.register_buffer("weight", weight, persistent=False)
        self.threshold, self.min_kept = threshold, min_kept
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.head_weights = list(head_weights)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return self._of_head(logits, target)
        if not logits or len(logits) != len(self.head_weights):
            raise ValueError(
                f"segops.nn.OhemCrossEntropy: logits must be one tensor or {len(self.head_weights)} "
                f"(head_weights has as many numbers), got {len(logits)}"
            )
        losses = [w * self._of_head(head, target) for head, w in zip(logits, self.head_weights, strict=True)]
        return torch.stack(losses).sum()

    def _of_head(self, logits: Tensor, target: Tensor) -> Tensor:
        entropy = dice_ce_loss(
            logits,
            target,
            dice_weight=0.0,
            reduction="none",
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
        )
        assert isinstance(entropy, Tensor)
        if self.weight is not None and self.weight.shape != logits.shape[1:2]:
            shapes = f"[{logits.shape[1]}], got {list(self.weight.shape)}"
            raise ValueError(f"segops.nn.OhemCrossEntropy: weight must be {shapes}")
        valid = target != self.ignore_index
        hard = valid & (entropy > self._least_entropy(entropy.detach(), valid))
        if self.weight is not None:
            entropy = entropy * self.weight[torch.where(valid, target, 0).long()].to(entropy.dtype)
        return torch.where(hard, entropy, 0.0).sum() / hard.sum().clamp(min=1)

    def _least_entropy(self, entropy: Tensor, valid: Tensor) -> Tensor:
        """What hard pixels exceed: -log of the probability that they stay below."""
        threshold = -math.log(self.threshold)
        if entropy.numel() == 0:
            return entropy.new_tensor(threshold)
        hardest = torch.where(valid, entropy, -math.inf).flatten().topk(min(self.min_kept + 1, entropy.numel())).values
        last = (valid.sum().clamp(max=len(hardest)) - 1).clamp(min=0)
        return hardest.gather(0, last[None])[0].clamp(max=threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, min_kept={self.min_kept}, ignore_index={self.ignore_index}"


class DynamicWeightDecay:
    """Weight decay of batch norm's scales, each by how active its channel is: CSNet's way to channels it can drop.

    The term is ``strength * mean over images of 0.5 * sum over channels of |mean over pixels of y| * scale^2 * cost``
    with y the norm's output, whose activity counts as a constant: the decay of a scale is proportional to the activity
    (Gao et al., "Highly Efficient Salient Object Detection with 100K Parameters", 2020). The optimizer should give
    these scales no other decay.

    It watches the norms in training mode until :meth:`remove`::

        decay = DynamicWeightDecay(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        loss = criterion(model(images), masks) + decay()

    Args:
        norms: layers with a `weight` [C] whose output is [N, C, H, W].
        strength: lambda.
        costs: one number for each norm, such as the multiply-adds of its channels; None for ones.

    Raises:
        ValueError: no norm, one without a weight, or another number of costs.
    """

    def __init__(self, norms: Iterable[nn.Module], strength: float = 3.0, costs: Sequence[float] | None = None) -> None:
        self.norms = list(norms)
        if not self.norms or any(getattr(norm, "weight", None) is None for norm in self.norms):
            raise ValueError("segops.nn.DynamicWeightDecay: norms must be one or more layers with a weight")
        if costs is not None and len(costs) != len(self.norms):
            raise ValueError(
                f"segops.nn.DynamicWeightDecay: costs must be {len(self.norms)} numbers, one for each norm, "
                f"got {len(costs)}"
            )
        self.costs = [1.0] * len(self.norms) if costs is None else list(costs)
        self.strength = strength
        self._activity: dict[nn.Module, Tensor] = {}
        self._hooks = [norm.register_forward_hook(self._watch) for norm in self.norms]

    def _watch(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if norm.training:
            self._activity[norm] = output.detach().mean((2, 3)).abs().mean(0)

    def __call__(self) -> Tensor:
        """The term for what the norms last saw in training mode, 0-dimensional; differentiable in their scales.

        Raises:
            RuntimeError: a norm has not run in training mode since the last call.
        """
        unseen = sum(norm not in self._activity for norm in self.norms)
        if unseen:
            raise RuntimeError(
                f"segops.nn.DynamicWeightDecay: {unseen} of {len(self.norms)} norms have not run in training mode "
                "since the last call"
            )
        terms = [
            cost * (self._activity.pop(norm) * norm.get_parameter("weight").square()).sum()
            for norm, cost in zip(self.norms, self.costs, strict=True)
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def remove(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
