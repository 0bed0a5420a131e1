"""dice_ce_loss: softmax-Dice and weighted cross-entropy from one read of the logits.

Three operators: ``statistics`` reads logits and target once and returns O(N C) sums, ``value`` turns sums into the loss
and its derivatives with respect to them, ``backward`` reads the logits once more and writes their gradient. Between the
first two the sums of several ranks can be added.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segops import backends, errors
from segops._dtypes import accumulation_dtype
from segops._layout import empty_like_pixels, pixel_stride
from segops._library import define_op, no_double_backward, refuse_forward_mode
from segops.ops import loss_arguments as common
from segops.ops import loss_ranks as ranks
from segops.ops import loss_statistics
from segops.ops.dice_ce_loss_arguments import OP, check_options, check_tensors
from segops.ops.dice_ce_loss_value import loss_of_sums
from segops.ops.loss_arguments import Overlap
from segops.reference import dice_ce_loss as reference


class DiceCELossParts(NamedTuple):
    """What ``return_parts=True`` adds to the loss; all detached.

    Attributes:
        ce: the cross-entropy term, before ``ce_weight``.
        dice: the overlap term, before ``dice_weight``.
        scores: [N, C] ([1, C] with ``batch_dice``), the score of each image and class.
        confusion: int64 [C, C], pixels by (target, argmax of the logits), of equal logits the first. Where coarse
            logits, interpolated, differ by no more than rounding, either may be the largest.
    """

    ce: Tensor
    dice: Tensor
    scores: Tensor
    confusion: Tensor


# So that an exported program that returns the parts can be saved.
torch.utils._pytree._register_namedtuple(DiceCELossParts, serialized_type_name="segops.DiceCELossParts")


def _fake_statistics(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    squared: bool,
    with_overlap: bool,
    with_confusion: bool,
    with_map: bool,
    on_bad: int,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, c = logits.shape[:2]
    return (
        logits.new_empty((n, 3, c) if with_overlap else (0,), dtype=torch.float64),
        logits.new_empty((2,), dtype=torch.float64),
        logits.new_empty(target.shape if with_map else (0,), dtype=accumulation_dtype(logits)),
        logits.new_empty((c, c) if with_confusion else (0,), dtype=torch.int64),
        logits.new_empty((3,), dtype=torch.int64),
    )


def _fake_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    grad_overlap: Tensor | None,
    grad_ce: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    squared: bool,
    align_corners: bool = False,
) -> Tensor:
    return empty_like_pixels(logits)


_STATISTICS = (
    "(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, int ignore_index, float label_smoothing, "
    "bool squared, bool with_overlap, bool with_confusion, bool with_map, int on_bad{more}) "
    "-> (Tensor overlap, Tensor ce, Tensor ce_map, Tensor confusion, Tensor bad_labels)"
)
_BACKWARD = (
    "(Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight, Tensor? grad_overlap, Tensor? grad_ce, "
    "int ignore_index, float label_smoothing, bool squared{more}) -> Tensor"
)
_DERIVATIVE = loss_statistics.derivative(OP, with_map=9, options=11)
for _name, _more in (("dice_ce_loss", ""), ("dice_ce_loss_coarse", ", bool align_corners")):
    define_op(f"{_name}_statistics{_STATISTICS.format(more=_more)}", _fake_statistics, *_DERIVATIVE)
    define_op(f"{_name}_backward{_BACKWARD.format(more=_more)}", _fake_backward, backward=no_double_backward(OP))


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    overlap: Overlap = "dice",
    smooth: float = 1e-5,
    batch_dice: bool = False,
    include_background: bool = True,
    absent_classes: str = "count",
    dice_class_weight: Tensor | None = None,
    squared: bool = False,
    align_corners: bool = False,
    reduction: str = "mean",
    return_parts: bool = False,
    process_group: Any = None,
    validate: str = "raise",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, DiceCELossParts]:
    """``ce_weight * cross-entropy + dice_weight * softmax-Dice``, without a one-hot and without stored probabilities.

    The cross-entropy is that of :func:`torch.nn.functional.cross_entropy`. With p = softmax(logits, 1) and t the
    one-hot target, both zero at ignored pixels, I = sum p t, P = sum p, T = sum t over the pixels of an image, the
    score of a class is (2 I + smooth) / (P + T + smooth), and the Dice term is the mean of 1 - score over classes and
    images (Milletari et al., "V-Net", 2016; with ``squared`` their p^2). Forward reads the logits once and keeps
    nothing of their size; backward reads them once and writes the gradient once.

    Logits of another height or width than the target stand for their bilinear interpolation to the target's, as
    :func:`torch.nn.functional.interpolate` has it (16-bit logits are interpolated in float32 and not rounded). Where
    they are coarser, or of equal extent, in both dimensions, the interpolated logits and their gradient are never in
    memory, and the gradient is summed in an order that depends on the shapes alone. Where one dimension is finer than
    the target's, they are interpolated in memory first.

    Args:
        logits: [N, C, *spatial] with one to three (or more) spatial dimensions; float32, float64, bfloat16 or float16,
            contiguous or channels last (anything else is copied once). Coarse logits are [N, C, h, w].
        target: [N, *spatial], with coarse logits [N, H, W]: class indices in [0, C) or `ignore_index`; uint8, int16,
            int32 or int64.
        weight: [C], class weights of the cross-entropy.
        pixel_weight: of the target's shape, multiplies each pixel's cross-entropy and its share of the mean's
            denominator.
        ignore_index: label of pixels that count nowhere; their gradient is zero, also where their logits are NaN.
        label_smoothing: in [0, 1], of the cross-entropy, as in torch.
        ce_weight: factor of the cross-entropy; 0 leaves it out.
        dice_weight: factor of the overlap term; 0 leaves it out.
        overlap: "dice"; "jaccard": (I + smooth) / (P + T - I + smooth); or ("tversky", alpha, beta):
            (I + smooth) / (I + alpha (P - I) + beta (T - I) + smooth) (Salehi et al. 2017).
        smooth: >= 0. A score of 0/0 counts as 1; without smooth, that of an absent class is 0 until its
            probabilities underflow, and then 1.
        batch_dice: add I, P, T over the batch before the score.
        include_background: False leaves class 0 out of the mean (not out of the softmax).
        absent_classes: "count", or "skip" to leave out (image, class) pairs without target pixels.
        dice_class_weight: [C], weights of the mean over classes (which still divides by their number, as MONAI does).
        squared: P sums p^2.
        align_corners: of the interpolation of coarse logits; without meaning for others.
        reduction: of the cross-entropy: "mean", "sum", or "none" for its map, of the target's shape (with
            ``dice_weight=0``).
        return_parts: also return :class:`DiceCELossParts`.
        process_group: a ProcessGroup whose ranks each have a part of the batch. The loss is that of the whole batch, on
            every rank, and the gradient is multiplied by the number of ranks: the mean that DistributedDataParallel
            takes is that of one rank with the whole batch. One all_reduce of a few numbers in forward, none in
            backward. Confusion, and the scores without `batch_dice`, remain this rank's.
        validate: "raise" raises ValueError for a label that is neither in [0, C) nor `ignore_index` (RuntimeError
            inside a compiled graph); "count" ignores such pixels and adds to :func:`segops.take_bad_data_count`; "off"
            ignores them.
        backend: see :mod:`segops.backends`.

    Returns:
        The loss, 0-dimensional (or the map), in the dtype of the logits, under autocast at least float32; with
        `return_parts` the pair (loss, parts).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; a bad label.

    Examples:
        >>> logits = torch.zeros(2, 3, 8, 8, requires_grad=True)  # of a head at a quarter of the resolution
        >>> target = torch.ones(2, 32, 32, dtype=torch.uint8)
        >>> loss, parts = segops.dice_ce_loss(logits, target, return_parts=True)
        >>> f"{parts.ce:.4f}"  # log 3
        '1.0986'
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 8, 8])
    """
    interpolate = check_tensors(logits, target, weight, pixel_weight, dice_class_weight)
    coefficients = common.overlap_coefficients(OP, overlap)
    check_options(
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        include_background=include_background,
        absent_classes=absent_classes,
    )
    common.check_options(
        OP,
        term="ce",
        term_weight=ce_weight,
        dice_weight=dice_weight,
        smooth=smooth,
        batch_dice=batch_dice,
        squared=squared,
        align_corners=align_corners,
        reduction=reduction,
        return_parts=return_parts,
        validate=validate,
    )
    errors.raise_arrived()
    if process_group is not None:
        ranks.check_group(OP, process_group, reduction)
    chosen = backends.resolve(backend, logits.device)
    dtype = common.result_dtype(logits)
    accumulate = accumulation_dtype(logits)
    with_map = reduction == "none"
    if interpolate and (chosen == "reference" or not common.is_coarse(logits, target)):
        logits = reference.interpolated(logits.to(accumulate), target.shape[1:], align_corners)
        interpolate = False
    if chosen == "reference":
        target = _reference_target(target, logits.shape[1], ignore_index, validate)
        sums, ce_sums, ce_map, confusion = reference.statistics(
            logits.to(accumulate), target, weight, pixel_weight, ignore_index, label_smoothing, squared
        )
    else:
        refuse_forward_mode(OP, logits)
        if pixel_stride(logits) is None:
            logits = logits.contiguous()  # once, rather than in forward and in backward
        sums, ce_sums, ce_map, confusion, bad_labels = backends.run(
            chosen,
            "dice_ce_loss_coarse_statistics" if interpolate else "dice_ce_loss_statistics",
            logits,
            target,
            None if weight is None else weight.to(torch.float64).contiguous(),
            None if pixel_weight is None else pixel_weight.to(accumulate),
            ignore_index,
            float(label_smoothing),
            squared,
            not with_map and (dice_weight != 0 or return_parts),
            return_parts,
            with_map,
            errors.on_bad(validate, logits),
            *((align_corners,) if interpolate else ()),
        )
        if validate == "raise":
            errors.raise_bad_labels(OP, bad_labels, target, logits.shape[1], ignore_index)
    if with_map:
        return ce_map.to(dtype)
    loss, parts, scores = loss_of_sums(
        chosen,
        sums,
        ce_sums,
        process_group,
        ce_weight=ce_weight,
        dice_weight=dice_weight,
        coefficients=coefficients,
        smooth=smooth,
        dice_class_weight=dice_class_weight,
        batch_dice=batch_dice,
        include_background=include_background,
        skip_absent=absent_classes == "skip",
        ce_mean=reduction == "mean",
    )
    if not return_parts:
        return loss.to(dtype)
    ce, dice, scores = (t.detach().to(dtype) for t in (parts[0], parts[1], scores))
    return loss.to(dtype), DiceCELossParts(ce, dice, scores, confusion)


def _reference_target(target: Tensor, classes: int, ignore_index: int, validate: str) -> Tensor:
    """The target with bad labels turned into ignored ones, after they were reported (not inside a compiled graph)."""
    label = target.long()
    bad = ((label < 0) | (label >= classes)) & (label != ignore_index)
    shape = list(target.shape)
    describe = partial(errors.describe_bad_labels, OP, shape=shape, classes=classes, ignore_index=ignore_index)
    errors.report_found(bad, label, validate, describe)
    return torch.where(bad, ignore_index, label)
