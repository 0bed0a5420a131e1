"""SaliencyMetrics against PySODMetrics, its distances against SciPy, and what PySODMetrics has no number for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from segops.metrics import SaliencyMetrics, functional
from segops.metrics.distance import REACH, nearest_foreground
from tests.metrics.data import files, grey

SHAPES = [(61, 83), (83, 61), (40, 300), (7, 5), (1, 1), (2, 9)]
TIED = 5e-3


@pytest.fixture
def peer():
    sod = pytest.importorskip("py_sod_metrics")

    def evaluate(predictions, targets, normalize=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mae, s, w, f, e = sod.MAE(), sod.Smeasure(), sod.WeightedFmeasure(), sod.Fmeasure(), sod.Emeasure()
            for prediction, target in zip(predictions, targets, strict=True):
                for metric in (mae, s, w, f, e):
                    metric.step(prediction, target, normalize)
        found, adaptive = f.get_results(), e.get_results()["em"]
        precision, recall = found["pr"]["p"], found["pr"]["r"]
        product = precision * recall
        of_means = 1.3 * product / np.where(product > 0, 0.3 * precision + recall, 1)
        return {
            "mae": mae.get_results()["mae"],
            "s_measure": s.get_results()["sm"],
            "weighted_f": w.get_results()["wfm"],
            "adaptive_f": found["fm"]["adp"],
            "adaptive_e": adaptive["adp"],
            "precision": precision,
            "recall": recall,
            "max_f": of_means.max(),
            "mean_f": of_means.mean(),
            "max_f_per_image": found["fm"]["curve"].max(),
            "mean_f_per_image": found["fm"]["curve"].mean(),
            "max_e": adaptive["curve"].max(),
            "mean_e": adaptive["curve"].mean(),
        }

    return evaluate


def random_maps(shape, number=3, seed=0):
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(number):
        mask = gaussian_filter(rng.normal(size=shape), max(min(shape) / 8, 0.5)) > 0
        smooth = gaussian_filter(mask * 200.0, 2) + rng.normal(0, 20, shape)
        predictions.append(np.clip(smooth, 0, 255).astype(np.uint8))
        targets.append((mask * 255).astype(np.uint8))
    return predictions, targets


def tensors(arrays, device="cpu"):
    return [torch.from_numpy(a).to(device) for a in arrays]


def check(found, expected, weighted=1e-6, without=(), others=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name not in without:
            limit = weighted if name == "weighted_f" else others
            np.testing.assert_allclose(found[name].cpu().numpy(), value, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_equals_pysodmetrics(shape, kind, peer, device):
    predictions, targets = random_maps(shape)
    if kind != "uint8":
        rng = np.random.default_rng(1)
        predictions = [np.clip(p / 255 + rng.uniform(0, 1e-3, shape), 0, 1).astype(kind) for p in predictions]
        targets = [t > 128 for t in targets]
    normalize = kind == "uint8"
    expected = peer(predictions, targets, normalize)
    without = ("s_measure",) if np.isnan(expected["s_measure"]) else ()
    metric = SaliencyMetrics(normalize)
    metric.update(torch.stack(tensors(predictions[:2], device)), torch.stack(tensors(targets[:2], device)))
    metric.update(tensors(predictions[2:], device), tensors(targets[2:], device))
    # PySODMetrics computes in the precision of the map.
    check(metric.compute(), expected, TIED, without, 1e-6 if kind == "float32" else 1e-9)


def test_real_masks(peer):
    """Of both orientations in one list: moved and blurred masks with noise."""
    rng = np.random.default_rng(0)
    targets = [grey(path) for path in files("salient/masks/*.png", 6)]
    blurred = [gaussian_filter(np.roll(t.astype(float), (7, -9), (0, 1)), 9) for t in targets]
    predictions = [np.clip(b + rng.normal(0, 8, b.shape), 0, 255).astype(np.uint8) for b in blurred]
    found = functional.saliency_metrics(tensors(predictions), tensors(targets))
    check(found, peer(predictions, targets), 1e-4)


EDGES = {
    "nothing, nothing": (0, 0),
    "nothing, all": (255, 0),
    "nothing, constant": (77, 0),
    "all, all": (255, 255),
    "all, nothing": (0, 255),
    "all, constant": (77, 255),
    "some, nothing": (0, None),
    "some, all": (255, None),
    "128 is background": (30, 128),
    "129 is foreground": (30, 129),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge, peer):
    value, mask = EDGES[edge]
    some = random_maps((61, 83), 1)[1][0]
    prediction = np.full((61, 83), value, dtype=np.uint8)
    target = some if mask is None else np.full((61, 83), mask, dtype=np.uint8)
    found = functional.saliency_metrics(tensors([prediction]), tensors([target]))
    check(found, peer([prediction], [target]), 1e-6)


def test_values_of_the_specification():
    """mae, S, wF, adaptive F, max F, adaptive E, mean E at 61 x 83, all foreground, prediction 0."""
    found = functional.saliency_metrics(torch.zeros(61, 83).byte(), torch.ones(61, 83, dtype=torch.bool))
    values = [found[k] for k in ("mae", "s_measure", "weighted_f", "adaptive_f", "max_f", "adaptive_e", "mean_e")]
    np.testing.assert_allclose(values, [1, 0, 0.0885, 1, 1, 1.0002, 0.0039], atol=5e-5)


@pytest.mark.parametrize(
    "place",
    [np.s_[:, -1], np.s_[-1, :], np.s_[-1, -1], np.s_[0, 0], np.s_[3, -1]],
    ids=["column", "row", "corner", "first", "edge"],
)
def test_empty_blocks_of_the_s_measure_count_nothing(place, peer, monkeypatch):
    prediction = random_maps((12, 17), 1)[0][0]
    target = np.zeros((12, 17), dtype=np.uint8)
    target[place] = 255
    sod = pytest.importorskip("py_sod_metrics.sod_metrics")
    ssim = sod.Smeasure.ssim
    monkeypatch.setattr(sod.Smeasure, "ssim", lambda self, p, g: ssim(self, p, g) if p.size else 0.0)
    found = functional.saliency_metrics(torch.from_numpy(prediction), torch.from_numpy(target))
    check(found, peer([prediction], [target]), TIED)


def test_blocks_of_one_value_count_one():
    """Prediction and mask constant in three of four blocks, at a value whose mean is rounded in floating point."""
    target = torch.zeros(20, 30, dtype=torch.bool)
    target[12:, 20:] = True
    prediction = torch.full((20, 30), 77, dtype=torch.uint8)
    found = functional.saliency_metrics(prediction, target)["s_measure"]
    value, share = 77 / 255, 80 / 600
    by_object = share * 2 * value / (value**2 + 1) + (1 - share) * 2 * (1 - value) / ((1 - value) ** 2 + 1)
    # The centre of rows 12 .. 19 and columns 20 .. 29 is (15.5, 24.5), to even: blocks begin at row 17, column 25.
    varying = 17 * 25 + 17 * 5 + 3 * 25  # each holds both; covariance 0 there
    assert float(found) == pytest.approx(0.5 * by_object + 0.5 * (1 - varying / 600), abs=1e-9)


@pytest.mark.parametrize("shape", [(40, 57), (3, 400), (400, 3), (1, 1), (300, 350)], ids=str)
def test_distances_are_exact(shape):
    rng = np.random.default_rng(2)
    for density in (0, 0.5 / np.prod(shape), 0.003, 0.5, 1):
        masks = rng.random((2, *shape)) < density
        masks[0, -1, -1] |= density > 0
        square, position = nearest_foreground(torch.from_numpy(masks))
        for i, mask in enumerate(masks):
            expected = distance_transform_edt(~mask) ** 2 if mask.any() else np.full(shape, REACH**2)
            np.testing.assert_array_equal(square[i], np.minimum(expected.round(), REACH**2))
            # What a kernel of 7 x 7 sees from the foreground gets the nearest pixel itself.
            near = expected <= 18
            rows, columns = np.nonzero(near)
            at = position[i].numpy()[near] - i * mask.size
            assert ((at >= 0) & (at < mask.size)).all() or not mask.any()
            to_row, to_column = at // shape[1], at % shape[1]
            if mask.any():
                assert mask[to_row, to_column].all()
                np.testing.assert_array_equal((to_row - rows) ** 2 + (to_column - columns) ** 2, expected[near].round())


def test_weighted_f_is_equal_where_the_same_nearest_pixel_is_taken(peer, monkeypatch):
    sod = pytest.importorskip("py_sod_metrics.sod_metrics")

    def ours(background, return_indices):
        distance, indices = distance_transform_edt(background, return_indices=True)
        position = nearest_foreground(torch.from_numpy(~background)[None]).position[0].numpy()
        near = distance**2 <= 18.5
        indices[0][near], indices[1][near] = position[near] // background.shape[1], position[near] % background.shape[1]
        return distance, indices

    predictions, targets = random_maps((61, 83), 4)
    monkeypatch.setattr(sod, "bwdist", ours)
    check(functional.saliency_metrics(tensors(predictions), tensors(targets)), peer(predictions, targets), 1e-9)


def test_batches_lists_and_dtypes_agree():
    predictions, targets = random_maps((23, 31), 40)
    maps, masks = torch.stack(tensors(predictions)), torch.stack(tensors(targets))
    expected = functional.saliency_metrics(list(maps), list(masks))
    for p, t in (
        (maps, masks),
        (maps[:, None], masks > 128),
        (maps.mT, masks.mT),
        (maps, masks.double() / 255),
        (maps.repeat_interleave(2, -1)[..., ::2], masks),
    ):
        check(functional.saliency_metrics(p, t), {k: v.numpy() for k, v in expected.items()}, TIED)
    half = functional.saliency_metrics(maps.half() / 255, masks)
    assert float(half["mae"]) == pytest.approx(float(expected["mae"]), abs=1e-3)


def test_empty_batch_and_reset():
    metric = SaliencyMetrics()
    assert metric.compute()["mae"].isnan()
    metric.update(torch.empty(0, 4, 5), torch.empty(0, 4, 5))
    assert metric.compute()["mae"].isnan()
    metric.update(torch.ones(4, 5), torch.zeros(4, 5))
    assert metric.compute()["mae"] == 1
    metric.update(torch.empty(0, 4, 5), torch.empty(0, 4, 5))
    assert metric.compute()["mae"] == 1
    metric.reset()
    assert metric.compute()["mae"].isnan()


GOOD = torch.rand(2, 5, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((GOOD.numpy(), GOOD), TypeError, "prediction must be a tensor, got ndarray"),
        ((GOOD, GOOD.to_sparse()), TypeError, "target must be a dense tensor, got torch.sparse_coo"),
        ((GOOD.long(), GOOD), TypeError, "prediction must be uint8 or floating point, got int64"),
        ((GOOD, GOOD.long()), TypeError, "target must be bool, uint8 or floating point, got int64"),
        ((GOOD, GOOD[:, :4]), ValueError, r"target must be of prediction's shape \[2, 5, 7\], got \[2, 4, 7\]"),
        ((GOOD[:, :0], GOOD[:, :0]), ValueError, "with at least one pixel"),
        ((GOOD[None], GOOD[None]), ValueError, r"\[N, 1, H, W\]"),
        ((GOOD * 255, GOOD), ValueError, r"prediction must be in \[0, 1\]"),
        ((torch.full_like(GOOD, torch.nan), GOOD), ValueError, r"prediction must be in \[0, 1\]"),
        (([GOOD], [GOOD, GOOD]), ValueError, "as many maps, at least one, got 1 and 2"),
        (([GOOD], GOOD), TypeError, "two tensors or two lists"),
        (([GOOD, GOOD], [GOOD, GOOD[:1]]), ValueError, r"target\[1\] must be of prediction's shape"),
    ],
)
def test_bad_batches_add_nothing(arguments, error, message):
    metric = SaliencyMetrics()
    with pytest.raises(error, match=message):
        metric.update(*arguments)
    assert metric.compute()["mae"].isnan()
