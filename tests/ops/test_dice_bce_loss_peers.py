"""dice_bce_loss equals what other libraries compute, in value and gradient, under one table of options.

Each row of `PEERS` is a loss of another library with its own arguments, and the arguments of segops.dice_bce_loss that
give the same number. The rules behind the rows, and what has no counterpart:

torch.nn.functional.binary_cross_entropy_with_logits
    dice_weight=0. weight -> pixel_weight, but torch divides its mean by the number of elements, segops by the sum of
    the weights -> bce_weight = mean of the weights. pos_weight: a weight for each channel is [C, 1, 1] in torch, [C] or
    that in segops. No counterpart: pos_weight that varies in space; weights that need a gradient.
torchvision.ops.sigmoid_focal_loss
    gamma -> focal_gamma; alpha -> bce_weight = 1 - alpha, pos_weight = alpha / (1 - alpha); alpha = -1 -> neither. Its
    default reduction is "none", with which bce_weight has no effect: multiply the map. No counterpart: alpha = 1; soft
    labels with an alpha other than 1/2 or -1, where it weights the loss as a whole and pos_weight its positive part.
MONAI DiceLoss, TverskyLoss (sigmoid=True, to_onehot_y=False)
    bce_weight=0, batch -> batch_dice, squared_pred -> squared, smooth_nr = smooth_dr = s -> smooth=s; jaccard=True ->
    overlap="jaccard", smooth=s/2, for MONAI's fraction is (2 I + s) / (2 (P + T - I) + s); alpha, beta -> ("tversky",
    alpha, beta). reduction="sum" -> dice_weight = N C. include_background=False -> leave channel 0 of logits and target
    out. ignore_index is the same for one channel; of several, MONAI ignores pixels, not elements.
    No counterpart: smooth_nr != smooth_dr; weight; soft_label=True (I = (P + T - sum |p - t|) / 2), and soft labels
    with squared_pred, which imply it.
MONAI DiceCELoss (sigmoid=True)
    One channel: lambda_ce -> bce_weight, lambda_dice -> dice_weight, weight -> pos_weight. Of several channels its
    cross-entropy is that of a softmax: see dice_ce_loss.
MONAI FocalLoss, DiceFocalLoss (sigmoid=True)
    gamma -> focal_gamma, lambda_focal -> bce_weight (times what follows), lambda_dice -> dice_weight. alpha as
    torchvision's; a sequence of alphas weights positive labels alone -> pos_weight. weight of FocalLoss (a factor of
    each channel) -> pixel_weight and bce_weight = its mean. reduction="sum" takes the mean over space first ->
    bce_weight times N C. ignore_index as DiceLoss's (with reduction="mean" MONAI 1.6 fails).
    No counterpart: soft labels, of which it takes another 1 - p_t.
segmentation_models_pytorch DiceLoss, JaccardLoss, TverskyLoss (mode="binary" and "multilabel")
    bce_weight=0, batch_dice=True. smooth=s -> 2 s for Dice, s for the others. classes=[...] -> logits[:, classes] and
    target[:, classes]. eps bounds the denominator from below: no difference where it is smaller. gamma of TverskyLoss:
    raise the result to that power.
    No counterpart: a channel without a positive label in the whole batch, whose loss smp takes for zero; soft labels (I
    as in MONAI's soft_label); log_loss, from_logits=False, class_weights.
segmentation_models_pytorch SoftBCEWithLogitsLoss
    weight, pos_weight as torch's. ignore_index is the same with reduction="sum"; its mean divides by ignored elements,
    too -> bce_weight = share of those that are not ignored. smooth_factor=s -> the target t (1 - s) + (1 - t) s.
segmentation_models_pytorch FocalLoss (mode="binary" and "multilabel")
    alpha, gamma as torchvision's, alpha=None as its -1; ignore_index is the same (of "multilabel" smp fails with it).
    No counterpart: normalized, reduced_threshold, class_weights, soft labels.
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
from tests.cases import make_logits
from tests.tolerances import compare

torchvision_ops = pytest.importorskip("torchvision.ops")
monai_losses = pytest.importorskip("monai.losses")
smp_losses = pytest.importorskip("segmentation_models_pytorch.losses")

N, C, H, W = 3, 4, 9, 11
IGNORE = 255
Loss = Callable[[Tensor, Tensor], Tensor]


def pos_weight() -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0, 3.5])


def channel_weight() -> Tensor:
    return torch.tensor([1.0, 0.25, 2.0, 0.5])


def pixel_weight() -> Tensor:
    return torch.randint(0, 9, (N, C, H, W), generator=torch.Generator().manual_seed(5)) / 4.0


class Peer(NamedTuple):
    """A loss (logits, target) -> value, and the options of segops that equal it.

    Attributes:
        labels: "hard" (uint8), "soft" (float32), or "ignored": hard, a tenth of them IGNORE.
        prepare: what segops is given in place of (logits, target).
        power, factor: what segops' value is raised to, and multiplied by.
        terms: magnitude of the two terms of a focal gradient, more than that of their sum.
    """

    loss: Loss
    options: dict[str, Any]
    channels: int = C
    labels: str = "hard"
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda logits, target: (logits, target)
    power: float = 1.0
    factor: float = 1.0
    terms: float = 0.0


def cast(arguments: dict[str, Any], like: Tensor) -> dict[str, Any]:
    return {k: v.to(like) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def torch_bce(**arguments: Any) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), **cast(arguments, logits))

    return loss


def torchvision(**arguments: Any) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return torchvision_ops.sigmoid_focal_loss(logits, target.to(logits.dtype), **arguments)

    return loss


def monai(name: str, **arguments: Any) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        module = getattr(monai_losses, name)(sigmoid=True, **arguments).to(logits.dtype)
        return module(logits, target.to(logits.dtype))

    return loss


def monai_focal(name: str = "FocalLoss", **arguments: Any) -> Loss:
    """FocalLoss computes in float32 whatever it is given; the truth in float64 is the same without that."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        module = getattr(monai_losses, name)(**arguments)
        focal = getattr(module, "focal", module)
        if logits.dtype != torch.float64:
            assert module(logits, target.to(logits.dtype)).dtype == torch.float32
            return module(logits, target.to(logits.dtype))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", lambda x: x)
            focal.class_weight = None if focal.class_weight is None else focal.class_weight.double()
            return module(logits, target.to(logits.dtype))

    return loss


def smp(name: str, mode: str = "multilabel", **arguments: Any) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return getattr(smp_losses, name)(mode, **arguments)(logits, target.to(logits.dtype))

    return loss


def smp_soft_bce(**arguments: Any) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return smp_losses.SoftBCEWithLogitsLoss(**cast(arguments, logits))(logits, target.to(logits.dtype))

    return loss


def smoothed(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return logits, target * 0.875 + (1 - target.float()) * 0.125


def channels(*which: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda logits, target: (logits[:, list(which)], target[:, list(which)])


BCE, DICE, SMP = {"dice_weight": 0}, {"bce_weight": 0}, {"bce_weight": 0, "batch_dice": True}
#: alpha = 0.2 of a focal loss.
ALPHA = {"bce_weight": 0.8, "pos_weight": torch.tensor(0.25), "dice_weight": 0}

PEERS: dict[str, Peer] = {
    "torch: mean": Peer(torch_bce(), BCE),
    "torch: sum": Peer(torch_bce(reduction="sum"), {**BCE, "reduction": "sum"}),
    "torch: none, soft": Peer(torch_bce(reduction="none"), {**BCE, "reduction": "none"}, labels="soft"),
    "torch: pos_weight, soft": Peer(
        torch_bce(pos_weight=pos_weight()[:, None, None]), {**BCE, "pos_weight": pos_weight()}, labels="soft"
    ),
    "torch: pos_weight, one number, one channel": Peer(
        torch_bce(pos_weight=torch.tensor(3.0)), {**BCE, "pos_weight": torch.tensor(3.0)}, channels=1
    ),
    "torch: weight, mean": Peer(
        torch_bce(weight=pixel_weight()),
        {**BCE, "pixel_weight": pixel_weight(), "bce_weight": float(pixel_weight().double().mean())},
    ),
    **{
        f"torch: all, {reduction}": Peer(
            torch_bce(weight=pixel_weight(), pos_weight=pos_weight()[:, None, None], reduction=reduction),
            {**BCE, "pixel_weight": pixel_weight(), "pos_weight": pos_weight()[:, None, None], "reduction": reduction},
            labels="soft",
        )
        for reduction in ("sum", "none")
    },
    "torch: weight of pixels": Peer(
        torch_bce(weight=pixel_weight()[:, :1], reduction="sum"),
        {**BCE, "pixel_weight": pixel_weight()[:, 0], "reduction": "sum"},
    ),
    "torchvision: default": Peer(
        torchvision(),
        {**BCE, "focal_gamma": 2.0, "reduction": "none", "pos_weight": torch.tensor(1 / 3, dtype=torch.float64)},
        factor=0.75,
    ),
    "torchvision: mean": Peer(torchvision(alpha=0.2, gamma=2, reduction="mean"), {**ALPHA, "focal_gamma": 2}),
    "torchvision: sum, gamma below 1": Peer(
        torchvision(alpha=0.2, gamma=0.5, reduction="sum"), {**ALPHA, "focal_gamma": 0.5, "reduction": "sum"}
    ),
    "torchvision: no alpha, soft": Peer(
        torchvision(alpha=-1, gamma=1.5, reduction="mean"), {**BCE, "focal_gamma": 1.5}, labels="soft"
    ),
    "monai: DiceLoss": Peer(monai("DiceLoss"), DICE),
    "monai: DiceLoss, one channel, soft": Peer(monai("DiceLoss"), DICE, channels=1, labels="soft"),
    "monai: DiceLoss, squared": Peer(monai("DiceLoss", squared_pred=True), {**DICE, "squared": True}),
    "monai: DiceLoss, batch, smooth": Peer(
        monai("DiceLoss", batch=True, smooth_nr=0.5, smooth_dr=0.5), {**DICE, "batch_dice": True, "smooth": 0.5}
    ),
    "monai: DiceLoss, jaccard, squared, no background, sum": Peer(
        monai(
            "DiceLoss",
            jaccard=True,
            squared_pred=True,
            smooth_nr=1.0,
            smooth_dr=1.0,
            include_background=False,
            reduction="sum",
        ),
        {**DICE, "overlap": "jaccard", "smooth": 0.5, "squared": True, "dice_weight": N * (C - 1)},
        prepare=channels(1, 2, 3),
    ),
    "monai: DiceLoss, ignore, one channel": Peer(
        monai("DiceLoss", ignore_index=IGNORE), {**DICE, "ignore_index": IGNORE}, channels=1, labels="ignored"
    ),
    "monai: TverskyLoss, batch": Peer(
        monai("TverskyLoss", alpha=0.3, beta=0.8, batch=True, smooth_nr=2.0, smooth_dr=2.0),
        {**DICE, "overlap": ("tversky", 0.3, 0.8), "batch_dice": True, "smooth": 2.0},
    ),
    "monai: DiceCELoss, one channel": Peer(
        monai("DiceCELoss", lambda_dice=0.4, lambda_ce=1.7, weight=torch.tensor([2.5])),
        {"dice_weight": 0.4, "bce_weight": 1.7, "pos_weight": torch.tensor([2.5])},
        channels=1,
        labels="soft",
    ),
    "monai: FocalLoss": Peer(monai_focal(), {**BCE, "focal_gamma": 2}, terms=3 / (N * C * H * W)),
    "monai: FocalLoss, alpha, ignore, one channel": Peer(
        monai_focal(alpha=0.2, gamma=1.3, ignore_index=IGNORE, reduction="none"),
        {**ALPHA, "focal_gamma": 1.3, "ignore_index": IGNORE, "reduction": "none"},
        channels=1,
        labels="ignored",
        factor=0.8,
    ),
    "monai: FocalLoss, alphas, weight": Peer(
        monai_focal(alpha=pos_weight().tolist(), weight=channel_weight(), gamma=2.0),
        {
            **BCE,
            "focal_gamma": 2.0,
            "pos_weight": pos_weight(),
            "pixel_weight": channel_weight()[:, None, None].expand(N, C, H, W),
            "bce_weight": float(channel_weight().mean()),
        },
        terms=10 / (N * C * H * W),
    ),
    "monai: FocalLoss, sum": Peer(
        monai_focal(gamma=0.7, reduction="sum"), {**BCE, "focal_gamma": 0.7, "bce_weight": N * C}
    ),
    "monai: DiceFocalLoss": Peer(
        monai_focal("DiceFocalLoss", sigmoid=True, lambda_dice=0.3, lambda_focal=2.0, gamma=2.0, batch=True),
        {"dice_weight": 0.3, "bce_weight": 2.0, "focal_gamma": 2.0, "batch_dice": True},
        terms=6 / (N * C * H * W),
    ),
    "smp: DiceLoss, binary": Peer(smp("DiceLoss", "binary"), {**SMP, "smooth": 0}, channels=1),
    "smp: DiceLoss, multilabel, smooth": Peer(smp("DiceLoss", smooth=0.5), {**SMP, "smooth": 1.0}),
    "smp: DiceLoss, classes, ignore": Peer(
        smp("DiceLoss", classes=[1, 3], ignore_index=IGNORE),
        {**SMP, "smooth": 0, "ignore_index": IGNORE},
        labels="ignored",
        prepare=channels(1, 3),
    ),
    "smp: JaccardLoss, binary, ignore": Peer(
        smp("JaccardLoss", "binary", smooth=0.3, ignore_index=IGNORE),
        {**SMP, "smooth": 0.3, "overlap": "jaccard", "ignore_index": IGNORE},
        channels=1,
        labels="ignored",
    ),
    "smp: JaccardLoss, multilabel": Peer(smp("JaccardLoss"), {**SMP, "smooth": 0, "overlap": "jaccard"}),
    "smp: TverskyLoss, binary": Peer(
        smp("TverskyLoss", "binary", alpha=0.3, beta=0.7, smooth=0.1),
        {**SMP, "smooth": 0.1, "overlap": ("tversky", 0.3, 0.7)},
        channels=1,
    ),
    "smp: TverskyLoss, multilabel, gamma": Peer(
        smp("TverskyLoss", alpha=0.6, beta=0.9, gamma=1.5),
        {**SMP, "smooth": 0, "overlap": ("tversky", 0.6, 0.9)},
        power=1.5,
    ),
    "smp: SoftBCEWithLogitsLoss, soft, pos_weight": Peer(
        smp_soft_bce(pos_weight=pos_weight()[:, None, None]), {**BCE, "pos_weight": pos_weight()}, labels="soft"
    ),
    "smp: SoftBCEWithLogitsLoss, smoothed, weight, sum": Peer(
        smp_soft_bce(smooth_factor=0.125, weight=pixel_weight(), reduction="sum"),
        {**BCE, "pixel_weight": pixel_weight(), "reduction": "sum"},
        prepare=smoothed,
    ),
    "smp: SoftBCEWithLogitsLoss, ignore, sum": Peer(
        smp_soft_bce(ignore_index=IGNORE, reduction="sum"),
        {**BCE, "ignore_index": IGNORE, "reduction": "sum"},
        labels="ignored",
    ),
    "smp: SoftBCEWithLogitsLoss, ignore, none": Peer(
        smp_soft_bce(ignore_index=IGNORE, reduction="none"),
        {**BCE, "ignore_index": IGNORE, "reduction": "none"},
        labels="ignored",
    ),
    "smp: FocalLoss, binary, ignore": Peer(
        smp("FocalLoss", "binary", alpha=0.2, gamma=2.0, ignore_index=IGNORE),
        {**ALPHA, "focal_gamma": 2.0, "ignore_index": IGNORE},
        channels=1,
        labels="ignored",
    ),
    "smp: FocalLoss, multilabel": Peer(smp("FocalLoss", alpha=None, gamma=1.5), {**BCE, "focal_gamma": 1.5}),
}


def make_target(peer: Peer, device: str, size: tuple[int, int] = (H, W)) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    target = torch.rand((N, peer.channels, *size), generator=generator)
    if peer.labels != "soft":
        ignored = torch.rand(target.shape, generator=generator) < 0.1
        target = target.round().to(torch.uint8)
        if peer.labels == "ignored":
            target[ignored] = IGNORE
    return target.to(device)


def run_ours(logits: Tensor, target: Tensor, peer: Peer, backend: str) -> Tensor:
    options = {k: v.to(logits.device) if isinstance(v, Tensor) else v for k, v in peer.options.items()}
    logits, target = peer.prepare(logits, target)
    return segops.dice_bce_loss(logits, target, backend=backend, **options) ** peer.power * peer.factor


def compare_with_peer(peer: Peer, logits: Tensor, target: Tensor, theirs: Loss, backend: str, what: str) -> None:
    upstream = None
    if peer.options.get("reduction") == "none":
        generator = torch.Generator().manual_seed(6)
        upstream = (torch.randint(-8, 9, target.shape, generator=generator) / 4.0).to(logits.device)
    compare(
        functools.partial(run_ours, target=target, peer=peer, backend=backend),
        functools.partial(theirs, target=target),
        logits,
        upstream=upstream,
        value_scale=2.0,
        gradient_scale=peer.terms,
        what=what,
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_peer(name: str, dtype: torch.dtype, layout: str, backend: str, device: str) -> None:
    peer = PEERS[name]
    logits = make_logits((N, peer.channels, H, W), dtype, layout, device=device)
    compare_with_peer(peer, logits, make_target(peer, device), peer.loss, backend, name)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "torch: all, none",
        "torch: weight of pixels",
        "torchvision: sum, gamma below 1",
        "monai: DiceLoss, squared",
        "monai: DiceFocalLoss",
        "smp: JaccardLoss, binary, ignore",
    ],
)
def test_peer_of_interpolated_logits(name: str, align_corners: bool, backend: str, device: str) -> None:
    """Coarse logits are the peer's after torch.nn.functional.interpolate."""
    peer = PEERS[name]
    aligned = peer._replace(options={**peer.options, "align_corners": align_corners})

    def theirs(logits: Tensor, target: Tensor) -> Tensor:
        return peer.loss(F.interpolate(logits, (H, W), mode="bilinear", align_corners=align_corners), target)

    logits = make_logits((N, peer.channels, 4, 5), device=device)
    compare_with_peer(aligned, logits, make_target(peer, device), theirs, backend, name)


@pytest.mark.parametrize(
    "name",
    [
        "torch: weight, mean",
        "torch: all, sum",
        "torchvision: sum, gamma below 1",
        "monai: DiceLoss, jaccard, squared, no background, sum",
        "monai: FocalLoss, alphas, weight",
        "smp: TverskyLoss, binary",
        "smp: FocalLoss, binary, ignore",
    ],
)
def test_the_table_matters(name: str, device: str) -> None:
    """A row without one of its options is another number: the comparison above can fail."""
    peer = PEERS[name]
    target = make_target(peer, device)
    logits = make_logits((N, peer.channels, H, W), torch.float64, device=device)
    expected = peer.loss(logits, target)
    assert torch.allclose(run_ours(logits, target, peer, "reference"), expected, rtol=1e-8, atol=0)
    for option in set(peer.options) - {"ignore_index"}:
        others = peer._replace(options={k: v for k, v in peer.options.items() if k != option})
        wrong = run_ours(logits, target, others, "reference")
        if peer.channels == 1 and option == "batch_dice":
            continue
        assert not torch.allclose(wrong, expected, rtol=1e-5, atol=0), option


def test_monai_in_three_dimensions(backend: str, device: str) -> None:
    target = make_target(PEERS["monai: DiceLoss"], device, size=(15, 7)).unflatten(2, (3, 5))
    compare(
        functools.partial(segops.dice_bce_loss, target=target, bce_weight=0, backend=backend),
        functools.partial(monai("DiceLoss"), target=target),
        make_logits((N, C, 3, 5, 7), device=device),
    )
