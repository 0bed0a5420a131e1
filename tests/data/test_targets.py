"""Heat maps and border weights against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import segops
from segops.data import border_weights, gaussian_heatmaps
from tests.cases import make_logits


def test_heatmaps_are_gaussians_of_the_distance() -> None:
    points = torch.tensor([[[2.0, 1.0], [3.5, -1.25]], [[0.0, 4.0], [40.0, 2.0]]], dtype=torch.float64)
    visible = torch.tensor([[True, True], [False, True]])
    maps = gaussian_heatmaps(points, (5, 7), 1.5, visible)
    assert maps.shape == (2, 2, 5, 7)
    for n, k, y, x in torch.ones_like(maps).nonzero().tolist():
        px, py = points[n, k].tolist()
        expected = math.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.5**2)) * bool(visible[n, k])
        assert maps[n, k, y, x].item() == pytest.approx(expected, abs=1e-15)
    assert gaussian_heatmaps(torch.tensor([3, 2]), (5, 7))[2, 3] == 1


def weights_by_loops(instances: torch.Tensor, w0: float, sigma: float, classes: tuple[float, float]) -> torch.Tensor:
    result = torch.empty(instances.shape, dtype=torch.float64)
    cells = [(instances == i).nonzero().double() for i in instances.unique() if i != 0]
    for y, x in torch.ones_like(instances).nonzero().tolist():
        at = torch.tensor([y, x], dtype=torch.float64)
        distances = sorted((cell - at).norm(dim=1).min().item() for cell in cells)
        if instances[y, x] != 0:
            result[y, x] = classes[1]
        elif len(distances) < 2:
            result[y, x] = classes[0]
        else:
            result[y, x] = classes[0] + w0 * math.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return result


def cells(height: int, width: int) -> torch.Tensor:
    """Blobs that nearly touch, one of them in two parts, and some alone at the edge."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 40, (1, 1, (height + 5) // 6, (width + 5) // 6), generator=generator)
    labels[labels > 9] = 0
    grown = F.interpolate(labels.float(), scale_factor=6)[0, 0, :height, :width].long()
    grown[::6] = 0
    return grown


@pytest.mark.parametrize("size", [(31, 43), (1, 29), (1, 1)])
@pytest.mark.parametrize("sigma", [0.7, 5.0])
def test_border_weights_are_the_formula(size: tuple[int, int], sigma: float) -> None:
    instances = cells(*size)
    expected = weights_by_loops(instances, 10.0, sigma, (0.4, 1.6))
    weights = border_weights(instances, 10.0, sigma, (0.4, 1.6))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    if size == (31, 43):
        assert expected[instances == 0].max() > 0.5  # there are borders to be weighted
    batch = torch.stack([instances, instances.flip(0)]).to(torch.int16)
    both = border_weights(batch, 10.0, sigma, (0.4, 1.6))
    torch.testing.assert_close(both, torch.stack([weights, weights.flip(0)]))


def test_border_weights_weigh_the_loss() -> None:
    instances = cells(31, 43)[None]
    logits, target = make_logits((1, 2, 31, 43)), (instances != 0).long()
    weights = border_weights(instances)
    expected = (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()
    loss = segops.nn.DiceCELoss(dice_weight=0)(logits, target, weights)
    torch.testing.assert_close(loss, expected)


def test_few_cells() -> None:
    assert torch.equal(border_weights(torch.zeros(3, 4, dtype=torch.uint8)), torch.ones(3, 4))
    assert torch.equal(
        border_weights(torch.ones(3, 4, dtype=torch.uint8), class_weights=(1, 2)), torch.full((3, 4), 2.0)
    )
    assert border_weights(torch.zeros(0, 3, 4, dtype=torch.int64)).shape == (0, 3, 4)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"points must be \[..., 2\], got \[4, 3\]"):
        gaussian_heatmaps(torch.zeros(4, 3), (2, 2))
    with pytest.raises(ValueError, match="sigma must be positive and finite, got -1"):
        gaussian_heatmaps(torch.zeros(4, 2), (2, 2), -1)
    with pytest.raises(ValueError, match=r"visible must be \[4\] like points, got \[1\]"):
        gaussian_heatmaps(torch.zeros(4, 2), (2, 2), visible=torch.ones(1, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"instances must be of an integer type, got torch.float32"):
        border_weights(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"instances must be \[H, W\] or \[N, H, W\], got \[2\]"):
        border_weights(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sigma must be in \(0, 36\], got 37"):
        border_weights(torch.zeros(2, 2, dtype=torch.int64), sigma=37)
    with pytest.raises(ValueError, match=r"class_weights must be two numbers, got \[1\]"):
        border_weights(torch.zeros(2, 2, dtype=torch.int64), class_weights=[1])
