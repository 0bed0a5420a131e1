"""dice_bce_loss: sigmoid-Dice and binary cross-entropy from one read of the logits, for binary and multilabel targets.

The sibling of dice_ce_loss, with statistics and backward of its own and the same operator `dice_ce_loss_value` between
them.
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
from segops.ops.dice_bce_loss_arguments import OP, check_options, check_tensors, with_channels
from segops.ops.dice_ce_loss_value import loss_of_sums
from segops.ops.loss_arguments import Overlap
from segops.reference import dice_bce_loss as reference
from segops.reference.dice_ce_loss import interpolated


class DiceBCELossParts(NamedTuple):
    """What ``return_parts=True`` adds to the loss; all detached.

    Attributes:
        bce: the cross-entropy term, before ``bce_weight``.
        dice: the overlap term, before ``dice_weight``.
        scores: [N, C] ([1, C] with ``batch_dice``), the score of each image and channel.
    """

    bce: Tensor
    dice: Tensor
    scores: Tensor


# So that an exported program that returns the parts can be saved.
torch.utils._pytree._register_namedtuple(DiceBCELossParts, serialized_type_name="segops.DiceBCELossParts")


def _fake_statistics(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int | None,
    focal_gamma: float,
    squared: bool,
    with_overlap: bool,
    with_map: bool,
    on_bad: int,
    align_corners: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c = logits.shape[:2]
    dtype = accumulation_dtype(logits)
    if not with_map:
        bce_map = logits.new_empty((0,), dtype=dtype)
    elif align_corners is None:
        bce_map = empty_like_pixels(logits, dtype)
    else:
        bce_map = logits.new_empty(target.shape, dtype=dtype)
    return (
        logits.new_empty((n, 3, c) if with_overlap else (0,), dtype=torch.float64),
        logits.new_empty((2,), dtype=torch.float64),
        bce_map,
        logits.new_empty((3,), dtype=torch.int64),
    )


def _fake_backward(
    logits: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    pixel_weight: Tensor | None,
    grad_overlap: Tensor | None,
    grad_bce: Tensor | None,
    ignore_index: int | None,
    focal_gamma: float,
    squared: bool,
    align_corners: bool | None = None,
) -> Tensor:
    return empty_like_pixels(logits)


_STATISTICS = (
    "(Tensor logits, Tensor target, Tensor? pos_weight, Tensor? pixel_weight, int? ignore_index, float focal_gamma, "
    "bool squared, bool with_overlap, bool with_map, int on_bad{more}) "
    "-> (Tensor overlap, Tensor bce, Tensor bce_map, Tensor bad_labels)"
)
_BACKWARD = (
    "(Tensor logits, Tensor target, Tensor? pos_weight, Tensor? pixel_weight, Tensor? grad_overlap, Tensor? grad_bce, "
    "int? ignore_index, float focal_gamma, bool squared{more}) -> Tensor"
)
_DERIVATIVE = loss_statistics.derivative(OP, with_map=8, options=10)
for _name, _more in (("dice_bce_loss", ""), ("dice_bce_loss_coarse", ", bool align_corners")):
    define_op(f"{_name}_statistics{_STATISTICS.format(more=_more)}", _fake_statistics, *_DERIVATIVE)
    define_op(f"{_name}_backward{_BACKWARD.format(more=_more)}", _fake_backward, backward=no_double_backward(OP))


def dice_bce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int | None = None,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    focal_gamma: float = 0.0,
    overlap: Overlap = "dice",
    smooth: float = 1e-5,
    batch_dice: bool = False,
    squared: bool = False,
    align_corners: bool = False,
    reduction: str = "mean",
    return_parts: bool = False,
    process_group: Any = None,
    validate: str = "raise",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, DiceBCELossParts]:
    """``bce_weight * binary cross-entropy + dice_weight * sigmoid-Dice``, without stored probabilities.

    The cross-entropy is that of :func:`torch.nn.functional.binary_cross_entropy_with_logits`, times
    ``(1 - p_t) ** focal_gamma`` with p_t = p t + (1 - p)(1 - t) (Lin et al., "Focal Loss for Dense Object Detection",
    2017). With p = sigmoid(logits) and t the label, I = sum p t, P = sum p, T = sum t over the pixels of an image, the
    score of a channel is (2 I + smooth) / (P + T + smooth), and the Dice term is the mean of 1 - score over channels
    and images (Milletari et al., "V-Net", 2016; with ``squared`` their p^2 and t^2). Channels are independent labels:
    one of them is a binary segmentation, several are a multilabel one. Forward reads the logits once and keeps nothing
    of their size; backward reads them once and writes the gradient once.

    torchvision's ``sigmoid_focal_loss(alpha, gamma)`` is ``bce_weight=1 - alpha``, a ``pos_weight`` of
    ``alpha / (1 - alpha)`` and ``focal_gamma=gamma``.

    Logits of another height or width than the target stand for their bilinear interpolation to the target's, as in
    :func:`segops.dice_ce_loss`: where they are coarser, or of equal extent, in both dimensions, the interpolated logits
    and their gradient are never in memory.

    Args:
        logits: [N, H, W], or [N, C, *spatial] with two (or more) spatial dimensions; float32, float64, bfloat16 or
            float16, contiguous or channels last (anything else is copied once). Coarse logits are [N, h, w] or
            [N, C, h, w].
        target: of the layout of the logits at its own size: bool, uint8 (0 or 1), or soft labels in [0, 1] of floating
            point (up to 1/128 outside, which interpolation may overshoot by), or `ignore_index`.
        pos_weight: [C], or one number in a tensor, or what broadcasts over [N, C, *spatial] as [C, 1, 1] does: weight
            of the positive part of the cross-entropy, as in torch.
        pixel_weight: [N, *spatial], [N, 1, *spatial] or of the target's shape: multiplies each element's cross-entropy
            and its share of the mean's denominator.
        ignore_index: label of elements that count nowhere; their gradient is zero, also where their logits are NaN. One
            that the target's dtype does not have is no element's label.
        bce_weight: factor of the cross-entropy; 0 leaves it out.
        dice_weight: factor of the overlap term; 0 leaves it out.
        focal_gamma: >= 0; of the cross-entropy.
        overlap: "dice"; "jaccard": (I + smooth) / (P + T - I + smooth); or ("tversky", alpha, beta):
            (I + smooth) / (I + alpha (P - I) + beta (T - I) + smooth) (Salehi et al. 2017).
        smooth: >= 0. A score of 0/0 counts as 1; without smooth, that of a channel without positives is 0 until its
            probabilities underflow, and then 1.
        batch_dice: add I, P, T over the batch before the score.
        squared: P sums p^2 and T sums t^2.
        align_corners: of the interpolation of coarse logits; without meaning for others.
        reduction: of the cross-entropy: "mean" (over what is not ignored, by weight), "sum", or "none" for its map, of
            the target's shape (with ``dice_weight=0``).
        return_parts: also return :class:`DiceBCELossParts`.
        process_group: as in :func:`segops.dice_ce_loss`: the loss is that of the whole batch on every rank, the
            gradient that of one rank with the whole batch times the number of ranks.
        validate: "raise" raises ValueError for a label that is none (RuntimeError inside a compiled graph); "count"
            ignores such elements and adds to :func:`segops.take_bad_data_count`; "off" ignores them.
        backend: see :mod:`segops.backends`.

    Returns:
        The loss, 0-dimensional (or the map), in the dtype of the logits, under autocast at least float32; with
        `return_parts` the pair (loss, parts).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; a bad label.

    Examples:
        >>> logits = torch.zeros(2, 1, 8, 8, requires_grad=True)
        >>> loss, parts = segops.dice_bce_loss(logits, torch.ones(2, 1, 32, 32), return_parts=True)
        >>> f"{parts.bce:.4f}"  # log 2
        '0.6931'
        >>> loss.backward()
    """
    interpolate = check_tensors(logits, target, pos_weight, pixel_weight)
    coefficients = common.overlap_coefficients(OP, overlap)
    check_options(ignore_index=ignore_index, focal_gamma=focal_gamma)
    common.check_options(
        OP,
        term="bce",
        term_weight=bce_weight,
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
    given = target
    ignored = ignore_index if ignore_index is None or _has(target.dtype, ignore_index) else None
    logits, target, pos_weight, pixel_weight = with_channels(logits, target, pos_weight, pixel_weight)
    if interpolate and (chosen == "reference" or not common.is_coarse(logits, target)):
        logits = interpolated(logits.to(accumulate), target.shape[2:], align_corners)
        interpolate = False
    if chosen == "reference":
        soft, shape = given.is_floating_point(), list(given.shape)
        describe = partial(errors.describe_bad_probabilities, OP, shape=shape, soft=soft, ignore_index=ignore_index)
        errors.report_found(reference.bad_labels(given, ignored), given, validate, describe)
        sums, bce_sums, bce_map = reference.statistics(
            logits.to(accumulate), target, pos_weight, pixel_weight, ignored, float(focal_gamma), squared
        )
    else:
        refuse_forward_mode(OP, logits)
        if pixel_stride(logits) is None:
            logits = logits.contiguous()  # once, rather than in forward and in backward
        sums, bce_sums, bce_map, bad_labels = backends.run(
            chosen,
            "dice_bce_loss_coarse_statistics" if interpolate else "dice_bce_loss_statistics",
            logits,
            target,
            pos_weight,
            pixel_weight,
            ignored,
            float(focal_gamma),
            squared,
            not with_map and (dice_weight != 0 or return_parts),
            with_map,
            errors.on_bad(validate, logits),
            *((align_corners,) if interpolate else ()),
        )
        if validate == "raise":
            errors.raise_bad_probabilities(OP, bad_labels, given, ignore_index)
    if with_map:
        return bce_map.view(given.shape).to(dtype)
    loss, parts, scores = loss_of_sums(
        chosen,
        sums,
        bce_sums,
        process_group,
        ce_weight=bce_weight,
        dice_weight=dice_weight,
        coefficients=coefficients,
        smooth=smooth,
        batch_dice=batch_dice,
        ce_mean=reduction == "mean",
    )
    if not return_parts:
        return loss.to(dtype)
    bce, dice, scores = (t.detach().to(dtype) for t in (parts[0], parts[1], scores))
    return loss.to(dtype), DiceBCELossParts(bce, dice, scores)


def _has(dtype: torch.dtype, value: int) -> bool:
    """Whether a label of this dtype can equal `value`. What is rounded to it, or is it modulo 256, is another label."""
    if not dtype.is_floating_point:
        return 0 <= value <= (1 if dtype == torch.bool else 255)
    info = torch.finfo(dtype)
    if not -info.max <= value <= info.max:
        return False
    whole = int(2 / info.eps)  # integers up to here are numbers of the dtype
    while not -whole <= value <= whole:
        if value % 2:
            return False
        value //= 2
    return True
