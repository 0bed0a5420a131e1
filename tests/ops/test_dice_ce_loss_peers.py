"""dice_ce_loss equals what other libraries compute, in value and gradient, under one table of options.

Each row of `PEERS` is a loss of another library with its own arguments, and the arguments of segops.dice_ce_loss that
give the same number. The rules behind the rows, and what has no counterpart:

torch.nn.functional.cross_entropy
    dice_weight=0; all other arguments have the same names. No counterpart: probabilities as target, logits without a
    spatial dimension.
MONAI DiceCELoss, DiceLoss, TverskyLoss (softmax=True, to_onehot_y=True)
    lambda_ce -> ce_weight, lambda_dice -> dice_weight, batch -> batch_dice, squared_pred -> squared,
    smooth_nr = smooth_dr = s -> smooth=s; jaccard=True -> overlap="jaccard", smooth=s/2, for MONAI's fraction is
    (2 I + s) / (2 (P + T - I) + s). weight of DiceCELoss -> weight and dice_class_weight; weight of DiceLoss ->
    dice_class_weight (with include_background=False it lacks class 0: put any number there). reduction="sum" sums the
    Dice of all images and classes too -> dice_weight times their number. TverskyLoss: alpha, beta -> ("tversky", alpha,
    beta). DiceLoss and TverskyLoss alone -> ce_weight=0.
    No counterpart: smooth_nr != smooth_dr; sigmoid, other_act; one channel, which MONAI takes for a binary problem (see
    dice_bce_loss); reduction="none".
segmentation_models_pytorch DiceLoss, JaccardLoss, TverskyLoss (mode="multiclass")
    batch_dice=True, ce_weight=0 or 1 with a cross-entropy beside it. smooth=s -> 2 s for Dice, s for the others.
    Its loss of a class without target pixels is zero, but still divides the mean -> dice_class_weight = 1 for classes
    present in the target, 0 for others. classes=[...] -> dice_class_weight = C / len(classes) at those, else 0.
    class_weights=w -> dice_class_weight = C w / sum(w). eps bounds the denominator from below: no difference where a
    class has pixels and eps is smaller than their number. gamma of TverskyLoss: raise the result to that power.
    No counterpart: log_loss, from_logits=False.
nnU-Net DC_and_CE_loss (MemoryEfficientSoftDiceLoss and RobustCrossEntropyLoss)
    Its Dice is the negative score: nnU-Net's loss = segops' - dice_weight. weight_ce -> ce_weight, weight_dice ->
    dice_weight, smooth=s -> smooth=s (its denominator is bounded from below by 1e-8: no difference for s > 0),
    do_bg -> include_background, batch_dice -> batch_dice, ignore_label -> ignore_index.
    No counterpart: a batch without a single labelled pixel (nnU-Net: no cross-entropy; torch and segops: NaN).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segops
from tests.cases import make_logits, random_labels
from tests.tolerances import compare

monai_losses = pytest.importorskip("monai.losses")
smp_losses = pytest.importorskip("segmentation_models_pytorch.losses")

N, C, H, W = 3, 5, 14, 17
IGNORE = 255
ABSENT = 3


def class_weights() -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5])


class Peer(NamedTuple):
    """A loss (logits, target) -> value, the options of segops that equal it, and what to add to segops' value."""

    loss: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]
    offset: float = 0.0
    power: float = 1.0
    absent: bool = False  # run it on a target in which no pixel is of class ABSENT
    ignored: bool = False  # ... in which a tenth of the pixels is IGNORE


def torch_ce(**arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        cast = {k: v.to(logits.dtype) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        return F.cross_entropy(logits, target.long(), **cast)

    return loss


def monai(name: str, **arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        module = getattr(monai_losses, name)(softmax=True, to_onehot_y=True, **arguments).to(logits.dtype)
        return module(logits, target.long()[:, None])

    return loss


def smp(name: str, with_ce: bool = False, **arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        value = getattr(smp_losses, name)("multiclass", **arguments)(logits, target.long())
        return value + F.cross_entropy(logits, target.long(), ignore_index=IGNORE) if with_ce else value

    return loss


def nnunet(
    weight_ce: float = 1.0,
    weight_dice: float = 1.0,
    smooth: float = 1.0,
    do_bg: bool = False,
    batch_dice: bool = True,
    ignore_label: int | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """nnU-Net v2, nnunetv2/training/loss, written out (DC_and_CE_loss with softmax_helper_dim1)."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        mask = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
        label = torch.where(mask, target, 0).long()
        x = logits.softmax(1)
        onehot = torch.zeros_like(x, dtype=torch.bool).scatter_(1, label[:, None], 1)
        if not do_bg:
            x, onehot = x[:, 1:], onehot[:, 1:]
        axes = list(range(2, x.ndim))
        sum_gt = (onehot * mask[:, None]).sum(axes)
        intersect = (x * onehot * mask[:, None]).sum(axes)
        sum_pred = (x * mask[:, None]).sum(axes)
        if batch_dice:
            intersect, sum_pred, sum_gt = intersect.sum(0), sum_pred.sum(0), sum_gt.sum(0)
        dc = (2 * intersect + smooth) / (sum_gt + sum_pred + smooth).clip(1e-8)
        ce = F.cross_entropy(logits, target.long(), ignore_index=-100 if ignore_label is None else ignore_label)
        return weight_ce * ce + weight_dice * -dc.mean()

    return loss


def present(*classes: int) -> Tensor:
    mask = torch.zeros(C)
    mask[list(classes)] = 1
    return mask


PEERS: dict[str, Peer] = {
    "torch: mean": Peer(torch_ce(), {"dice_weight": 0}),
    "torch: sum": Peer(torch_ce(reduction="sum"), {"dice_weight": 0, "reduction": "sum"}),
    "torch: none": Peer(torch_ce(reduction="none"), {"dice_weight": 0, "reduction": "none"}),
    "torch: weight": Peer(torch_ce(weight=class_weights()), {"dice_weight": 0, "weight": class_weights()}),
    "torch: smoothing": Peer(torch_ce(label_smoothing=0.1), {"dice_weight": 0, "label_smoothing": 0.1}),
    "torch: ignore": Peer(torch_ce(ignore_index=IGNORE), {"dice_weight": 0, "ignore_index": IGNORE}, ignored=True),
    "torch: ignore a class": Peer(torch_ce(ignore_index=2), {"dice_weight": 0, "ignore_index": 2}),
    **{
        f"torch: all, {reduction}": Peer(
            torch_ce(weight=class_weights(), label_smoothing=0.3, ignore_index=IGNORE, reduction=reduction),
            {
                "dice_weight": 0,
                "weight": class_weights(),
                "label_smoothing": 0.3,
                "ignore_index": IGNORE,
                "reduction": reduction,
            },
            ignored=True,
        )
        for reduction in ("mean", "sum", "none")
    },
    "monai: DiceCELoss": Peer(monai("DiceCELoss"), {}),
    "monai: DiceCELoss, absent": Peer(monai("DiceCELoss"), {}, absent=True),
    "monai: DiceCELoss, smooth": Peer(monai("DiceCELoss", smooth_nr=0.5, smooth_dr=0.5), {"smooth": 0.5}),
    "monai: DiceCELoss, factors": Peer(
        monai("DiceCELoss", lambda_dice=0.4, lambda_ce=1.7), {"dice_weight": 0.4, "ce_weight": 1.7}
    ),
    "monai: DiceCELoss, batch": Peer(monai("DiceCELoss", batch=True), {"batch_dice": True}),
    "monai: DiceCELoss, no background": Peer(
        monai("DiceCELoss", include_background=False), {"include_background": False}
    ),
    "monai: DiceCELoss, squared": Peer(monai("DiceCELoss", squared_pred=True), {"squared": True}),
    "monai: DiceCELoss, jaccard": Peer(
        monai("DiceCELoss", jaccard=True, smooth_nr=0.5, smooth_dr=0.5), {"overlap": "jaccard", "smooth": 0.25}
    ),
    "monai: DiceCELoss, weight": Peer(
        monai("DiceCELoss", weight=class_weights()), {"weight": class_weights(), "dice_class_weight": class_weights()}
    ),
    "monai: DiceCELoss, smoothing": Peer(monai("DiceCELoss", label_smoothing=0.2), {"label_smoothing": 0.2}),
    "monai: DiceCELoss, sum": Peer(monai("DiceCELoss", reduction="sum"), {"reduction": "sum", "dice_weight": N * C}),
    "monai: DiceCELoss, sum, batch, no background": Peer(
        monai("DiceCELoss", reduction="sum", batch=True, include_background=False),
        {"reduction": "sum", "dice_weight": C - 1, "batch_dice": True, "include_background": False},
    ),
    "monai: DiceCELoss, everything": Peer(
        monai(
            "DiceCELoss",
            include_background=False,
            squared_pred=True,
            jaccard=True,
            batch=True,
            weight=class_weights(),
            lambda_dice=0.3,
            lambda_ce=0.6,
            label_smoothing=0.1,
            smooth_nr=1.0,
            smooth_dr=1.0,
        ),
        {
            "include_background": False,
            "squared": True,
            "overlap": "jaccard",
            "smooth": 0.5,
            "batch_dice": True,
            "weight": class_weights(),
            "dice_class_weight": class_weights(),
            "dice_weight": 0.3,
            "ce_weight": 0.6,
            "label_smoothing": 0.1,
        },
        absent=True,
    ),
    "monai: DiceLoss": Peer(monai("DiceLoss"), {"ce_weight": 0}),
    "monai: DiceLoss, ignore": Peer(
        monai("DiceLoss", ignore_index=IGNORE), {"ce_weight": 0, "ignore_index": IGNORE}, ignored=True
    ),
    "monai: DiceLoss, weight, no background": Peer(
        monai("DiceLoss", include_background=False, weight=class_weights()[1:]),
        {"ce_weight": 0, "include_background": False, "dice_class_weight": class_weights()},
    ),
    "monai: TverskyLoss": Peer(
        monai("TverskyLoss", alpha=0.3, beta=0.7), {"ce_weight": 0, "overlap": ("tversky", 0.3, 0.7)}
    ),
    "monai: TverskyLoss, all": Peer(
        monai(
            "TverskyLoss",
            alpha=0.9,
            beta=0.4,
            batch=True,
            include_background=False,
            smooth_nr=2.0,
            smooth_dr=2.0,
            ignore_index=IGNORE,
        ),
        {
            "ce_weight": 0,
            "overlap": ("tversky", 0.9, 0.4),
            "batch_dice": True,
            "include_background": False,
            "smooth": 2.0,
            "ignore_index": IGNORE,
        },
        ignored=True,
    ),
    "smp: DiceLoss": Peer(smp("DiceLoss"), {"ce_weight": 0, "batch_dice": True, "smooth": 0}),
    "smp: DiceLoss, smooth": Peer(smp("DiceLoss", smooth=0.5), {"ce_weight": 0, "batch_dice": True, "smooth": 1.0}),
    "smp: DiceLoss and cross-entropy, ignore": Peer(
        smp("DiceLoss", with_ce=True, ignore_index=IGNORE),
        {"batch_dice": True, "smooth": 0, "ignore_index": IGNORE},
        ignored=True,
    ),
    "smp: DiceLoss, absent": Peer(
        smp("DiceLoss"),
        {"ce_weight": 0, "batch_dice": True, "smooth": 0, "dice_class_weight": 1 - present(ABSENT)},
        absent=True,
    ),
    "smp: DiceLoss, classes": Peer(
        smp("DiceLoss", classes=[1, 4]),
        {"ce_weight": 0, "batch_dice": True, "smooth": 0, "dice_class_weight": C / 2 * present(1, 4)},
    ),
    "smp: DiceLoss, class weights": Peer(
        smp("DiceLoss", class_weights=class_weights().tolist()),
        {
            "ce_weight": 0,
            "batch_dice": True,
            "smooth": 0,
            "dice_class_weight": C * class_weights().double() / class_weights().double().sum(),
        },
    ),
    "smp: JaccardLoss": Peer(
        smp("JaccardLoss"), {"ce_weight": 0, "batch_dice": True, "smooth": 0, "overlap": "jaccard"}
    ),
    "smp: JaccardLoss and cross-entropy, smooth, absent, ignore": Peer(
        smp("JaccardLoss", with_ce=True, smooth=0.3, ignore_index=IGNORE),
        {
            "batch_dice": True,
            "smooth": 0.3,
            "overlap": "jaccard",
            "ignore_index": IGNORE,
            "dice_class_weight": 1 - present(ABSENT),
        },
        absent=True,
        ignored=True,
    ),
    "smp: TverskyLoss": Peer(
        smp("TverskyLoss", alpha=0.3, beta=0.7, smooth=0.1),
        {"ce_weight": 0, "batch_dice": True, "smooth": 0.1, "overlap": ("tversky", 0.3, 0.7)},
    ),
    "smp: TverskyLoss, gamma": Peer(
        smp("TverskyLoss", alpha=0.3, beta=0.7, gamma=1.5),
        {"ce_weight": 0, "batch_dice": True, "smooth": 0, "overlap": ("tversky", 0.3, 0.7)},
        power=1.5,
    ),
    "nnU-Net": Peer(nnunet(), {"smooth": 1.0, "batch_dice": True, "include_background": False}, offset=-1.0),
    "nnU-Net, background, by image, factors": Peer(
        nnunet(weight_ce=0.5, weight_dice=2.0, smooth=1e-5, do_bg=True, batch_dice=False),
        {"ce_weight": 0.5, "dice_weight": 2.0, "smooth": 1e-5},
        offset=-2.0,
    ),
    "nnU-Net, ignore, absent": Peer(
        nnunet(ignore_label=IGNORE),
        {"smooth": 1.0, "batch_dice": True, "include_background": False, "ignore_index": IGNORE},
        offset=-1.0,
        absent=True,
        ignored=True,
    ),
}


def make_target(peer: Peer, device: str) -> Tensor:
    target = random_labels((N, H, W), C, ignore_index=IGNORE if peer.ignored else None, device=device)
    if peer.absent:
        target[target == ABSENT] = 0
    return target


def run_ours(logits: Tensor, target: Tensor, peer: Peer, backend: str) -> Tensor:
    options = {k: v.to(logits.device) if isinstance(v, Tensor) else v for k, v in peer.options.items()}
    value = segops.dice_ce_loss(logits, target, backend=backend, **options)
    return value**peer.power + peer.offset


# MONAI's one-hot target is float32 whatever the logits are, and with squared_pred goes through a square root: there is
# no float64 truth to be had from it then, beyond float32 logits.
DTYPES = {"squared": (torch.float32,), "otherwise": (torch.float32, torch.float64)}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n, p in PEERS.items() for d in DTYPES["squared" if p.options.get("squared") else "otherwise"]],
    ids=str,
)
def test_peer(name: str, dtype: torch.dtype, layout: str, backend: str, device: str) -> None:
    peer = PEERS[name]
    target = make_target(peer, device)
    upstream = torch.randint(-8, 9, (N, H, W), device=device) / 4.0 if peer.options.get("reduction") == "none" else None
    compare(
        functools.partial(run_ours, target=target, peer=peer, backend=backend),
        functools.partial(peer.loss, target=target),
        make_logits((N, C, H, W), dtype, layout, device=device),
        upstream=upstream,
        value_scale=2.0,
        what=name,
    )


@pytest.mark.parametrize(
    "name",
    [
        "torch: all, sum",
        "monai: DiceCELoss, everything",
        "smp: JaccardLoss and cross-entropy, smooth, absent, ignore",
        "nnU-Net, ignore, absent",
    ],
)
def test_the_table_matters(name: str, device: str) -> None:
    """A row without one of its options is another number: the comparison above can fail."""
    peer = PEERS[name]
    target = make_target(peer, device)
    logits = make_logits((N, C, H, W), torch.float64, device=device)
    expected = peer.loss(logits, target)
    assert torch.allclose(run_ours(logits, target, peer, "reference"), expected, rtol=1e-8, atol=0)
    for option in set(peer.options) - {"ignore_index"}:
        others = peer._replace(options={k: v for k, v in peer.options.items() if k != option})
        wrong = run_ours(logits, target, others, "reference")
        assert not torch.allclose(wrong, expected, rtol=1e-5, atol=0), option


@pytest.mark.parametrize("spatial", [(29,), (3, 5, 7)])
def test_monai_in_one_and_three_dimensions(spatial: tuple[int, ...], backend: str, device: str) -> None:
    target = random_labels((2, *spatial), C, device=device)
    compare(
        functools.partial(segops.dice_ce_loss, target=target, backend=backend),
        functools.partial(monai("DiceCELoss"), target=target),
        make_logits((2, C, *spatial), device=device),
    )
