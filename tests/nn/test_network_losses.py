"""HeatmapLoss, OhemCrossEntropy and DynamicWeightDecay against their definitions; recipes of other networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segops.nn import DeepSupervisionLoss, DiceCELoss, DynamicWeightDecay, HeatmapLoss, OhemCrossEntropy
from tests.cases import make_logits, random_labels


def test_heatmap_loss_sums_the_stacks() -> None:
    heatmaps = make_logits((2, 3, 4, 5, 6), torch.float64).requires_grad_()
    target = make_logits((2, 4, 5, 6), torch.float64, seed=1)
    expected = ((heatmaps - target[:, None]) ** 2).sum() / target.numel()
    loss = HeatmapLoss()(heatmaps, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, heatmaps)
    torch.testing.assert_close(gradient, 2 * (heatmaps - target[:, None]) / target.numel())
    assert torch.equal(HeatmapLoss()(list(heatmaps.unbind(1)), target), loss)
    mean = HeatmapLoss((1 / 3,) * 3)(heatmaps, target)
    assert mean.item() == pytest.approx(F.mse_loss(heatmaps, target[:, None].expand_as(heatmaps)).item())


def hard_mean(logits: Tensor, target: Tensor, threshold: float, min_kept: int, weight: Tensor | None) -> Tensor:
    """Pixels one by one, by increasing probability."""
    logits = F.interpolate(logits, target.shape[1:], mode="bilinear")
    pixels = []
    for n, y, x in (target != 255).nonzero().tolist():
        label = int(target[n, y, x])
        log_p = logits[n, :, y, x].log_softmax(0)[label]
        pixels.append((log_p.exp().item(), -log_p * (1 if weight is None else weight[label])))
    pixels.sort(key=lambda pixel: pixel[0])
    bound = max(threshold, pixels[min(min_kept, len(pixels) - 1)][0])
    return torch.stack([loss for p, loss in pixels if p < bound]).mean()


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.3, 100), (0.9, 20), (0.2, 100_000)])
def test_ohem_is_its_definition(coarse: bool, weighted: bool, threshold: float, min_kept: int) -> None:
    target = random_labels((2, 13, 11), 4)
    target[0, :4] = 255
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
    logits = make_logits((2, 4, 5, 4) if coarse else (2, 4, 13, 11), torch.float64).requires_grad_()
    expected = hard_mean(logits, target, threshold, min_kept, weight)
    loss = OhemCrossEntropy(threshold, min_kept, weight=weight)(logits, target)
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_ohem_of_heads_in_one_graph() -> None:
    heads = [make_logits((2, 4, 5, 4), seed=seed) for seed in (1, 2)]
    target = random_labels((2, 13, 11), 4)
    loss = OhemCrossEntropy(0.5, 30)
    single = [loss(head, target) for head in heads]
    assert loss(heads, target).item() == pytest.approx((single[0] + 0.4 * single[1]).item(), rel=1e-6)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(heads, target), loss(heads, target))


def test_ohem_without_hard_pixels_is_zero() -> None:
    logits = make_logits((1, 3, 4, 4)).requires_grad_()
    for target in (torch.full((1, 4, 4), 255), torch.zeros(1, 4, 4, dtype=torch.long)):
        sure = logits * 0 + torch.tensor([50.0, 0, 0])[:, None, None]
        loss = OhemCrossEntropy(0.9, 1)(sure, target)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, logits)[0].any()
    assert OhemCrossEntropy()(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.long)).item() == 0


def test_dynamic_weight_decay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)
    decay = DynamicWeightDecay(norms, strength=2.0, costs=(1.0, 5.0))
    images = torch.randn(3, 2, 9, 9)
    first = model[:2](images)
    second = model[2:](first)
    term = decay()
    expected = torch.zeros(())
    slopes = []
    for norm, output, cost in zip(norms, (first, second), (1.0, 5.0), strict=True):
        activity = output.detach().mean((2, 3)).abs()  # [N, C]
        expected += (2.0 * 0.5 * cost * activity * norm.weight.square()).sum(1).mean()
        slopes.append(2.0 * cost * activity.mean(0) * norm.weight)
    torch.testing.assert_close(term, expected)
    torch.testing.assert_close(list(torch.autograd.grad(term, [norm.weight for norm in norms])), slopes)
    with pytest.raises(RuntimeError, match="2 of 2 norms have not run in training mode since the last call"):
        decay()
    model.eval()(images)
    with pytest.raises(RuntimeError, match="2 of 2"):
        decay()
    model.train()(images)
    decay()
    decay.remove()
    model(images)
    with pytest.raises(RuntimeError, match="2 of 2"):
        decay()


def test_recipes() -> None:
    """FCN's summed and SegNet's weighted cross-entropy, and HRNet-OCR's of two heads, are options of others."""
    logits = [make_logits((2, 5, 3, 4), torch.float64, seed=seed) for seed in (1, 2)]
    full = [F.interpolate(head, (12, 13), mode="bilinear") for head in logits]
    target = random_labels((2, 12, 13), 5)
    target[0, 0] = 255
    weight = torch.tensor([0.26, 0.18, 4.56, 0.14, 0.9], dtype=torch.float64)
    for ours, theirs in (
        (DiceCELoss(dice_weight=0, reduction="sum", ignore_index=255), {"reduction": "sum"}),
        (DiceCELoss(dice_weight=0, weight=weight, ignore_index=255), {"weight": weight}),
    ):
        expected = F.cross_entropy(full[0], target, ignore_index=255, **theirs)
        assert ours(logits[0], target).item() == pytest.approx(expected.item(), rel=1e-12)
    ours = DeepSupervisionLoss((1, 0.4), dice_weight=0, ignore_index=255)(logits, target)
    plain = [F.cross_entropy(head, target, ignore_index=255) for head in full]
    assert ours.item() == pytest.approx((plain[0] + 0.4 * plain[1]).item(), rel=1e-12)


def test_bad_input() -> None:
    target = torch.zeros(1, 2, 4, 4)
    for heatmaps, text in (
        ([], "must be of one or more stacks, got 0"),
        (target[:, None, :1], r"heat maps 0 must be \[1, 2, 4, 4\] like target, got \[1, 1, 4, 4\]"),
    ):
        with pytest.raises(ValueError, match=text):
            HeatmapLoss()(heatmaps, target)
    with pytest.raises(ValueError, match="heatmaps must be of 2 stacks, got 1"):
        HeatmapLoss((1, 1))([target], target)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        OhemCrossEntropy(0)
    with pytest.raises(ValueError, match="min_kept must be a positive int, got 0"):
        OhemCrossEntropy(min_kept=0)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"logits must be one tensor or 2 .*, got 3"):
        OhemCrossEntropy()([target] * 3, labels)
    with pytest.raises(ValueError, match=r"weight must be \[2\], got \[3\]"):
        OhemCrossEntropy(weight=torch.ones(3))(target, labels)
    with pytest.raises(ValueError, match="norms must be one or more layers with a weight"):
        DynamicWeightDecay([nn.BatchNorm2d(3, affine=False)])
    with pytest.raises(ValueError, match="costs must be 1 numbers, one for each norm, got 2"):
        DynamicWeightDecay([nn.BatchNorm2d(3)], costs=(1, 2))
