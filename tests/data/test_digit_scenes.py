"""DigitScenes: what an item is, what it depends on, and that held-out means held out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segops.data import DigitScenes, digit_scenes


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("size", [(64, 64), (48, 97), (300, 32)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_item_is_an_image_and_its_labels(split: str, size: tuple[int, int]) -> None:
    scenes = DigitScenes(split, length=5, size=size)
    assert len(scenes) == 5
    for image, label in scenes:
        assert image.dtype == torch.float32
        assert image.shape == (3, *size)
        assert image.min() >= 0
        assert image.max() <= 1
        assert label.dtype == torch.int64
        assert label.shape == size
        assert label.min() == 0
        assert 1 <= label.max() <= 10


def test_all_classes_occur_and_have_a_name_and_a_colour_of_their_own() -> None:
    scenes = DigitScenes(length=32)
    counts = torch.stack([label for _, label in scenes]).flatten().bincount()
    assert len(counts) == len(DigitScenes.classes) == 11
    share = counts / counts.sum()
    assert 0.7 < share[0] < 0.95
    assert (share[1:] > 0.005).all()
    assert DigitScenes.classes == ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert DigitScenes.palette.dtype == torch.uint8
    assert DigitScenes.palette.unique(dim=0).shape == (11, 3)


def test_a_label_is_the_digit_that_is_drawn() -> None:
    """A nearest neighbour among the samples recognises the shape of a label: classes are not shifted or shuffled."""
    scenes = DigitScenes(length=60, size=(96, 96), digits=1)
    shapes = (scenes.glyphs > 0.4).float().flatten(1)
    right = 0
    for _, label in scenes:
        (value,) = label[label > 0].unique().tolist()
        rows, columns = (label > 0).any(1).nonzero().flatten(), (label > 0).any(0).nonzero().flatten()
        drawn = label[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 0
        # The samples are 8 high, and as wide as they are written.
        width = max(1, round(8 * drawn.shape[1] / drawn.shape[0] / 0.9))
        small = torch.nn.functional.interpolate(drawn[None, None].float(), (8, min(8, width)), mode="area")[0, 0]
        canvas = torch.zeros(8, 8)
        left = (8 - small.shape[1]) // 2
        canvas[:, left : left + small.shape[1]] = small
        nearest = int((shapes - canvas.flatten()).square().sum(1).argmin())
        right += int(scenes.values[nearest]) + 1 == value
    assert right >= 45


def test_digits_stand_out_from_their_background() -> None:
    for image, label in DigitScenes(length=20):
        assert image[:, label > 0].mean() > image[:, label == 0].mean() + 0.15


def test_an_item_depends_on_seed_split_and_index_only() -> None:
    scenes = DigitScenes("train", length=10, seed=3)
    backwards = [scenes[i] for i in reversed(range(10))][::-1]
    torch.rand(5)  # moves the global generator
    longer = DigitScenes("train", length=500, seed=3)
    for i in range(10):
        assert same(longer[i], backwards[i])
    item = scenes[4]
    assert same(scenes[-6], item)
    assert not same(scenes[5], item)
    assert not same(DigitScenes("train", length=10, seed=4)[4], item)
    assert not same(DigitScenes("val", length=10, seed=3)[4], item)


def test_worker_processes_and_threads_do_not_change_an_item() -> None:
    scenes = DigitScenes("val", length=6)
    here = torch.stack([image for image, _ in scenes])
    loaded = torch.cat([image for image, _ in DataLoader(scenes, batch_size=3, num_workers=2)])
    assert torch.equal(here, loaded)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert torch.equal(here, torch.stack([image for image, _ in scenes]))
    finally:
        torch.set_num_threads(threads)


def test_the_splits_share_no_digit_sample_and_no_pixel_of_a_photograph() -> None:
    from sklearn.datasets import load_digits, load_sample_images

    train, val = DigitScenes("train"), DigitScenes("val")
    samples = [{glyph.numpy().tobytes() for glyph in scenes.glyphs} for scenes in (train, val)]
    assert samples[0].isdisjoint(samples[1])
    assert len(train.glyphs) + len(val.glyphs) == len(load_digits().target)
    assert len(val.glyphs) > 400
    assert len(val.values.unique()) == 10
    # The parts laid side by side are the photograph: neither has a pixel of the other.
    for photo, left, right in zip(load_sample_images().images, train.photos, val.photos, strict=True):
        whole = torch.from_numpy(photo.copy()).movedim(-1, 0).float() / 255
        assert torch.equal(torch.cat([left, right], -1), whole)
        assert right.shape[-1] > 100


def test_scenes_keep_to_the_sources_of_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its sources blanked out, a split has nothing left to draw: it has no other."""
    scenes = DigitScenes("val", length=3)
    monkeypatch.setattr(scenes, "photos", tuple(torch.zeros_like(photo) for photo in scenes.photos))
    monkeypatch.setattr(scenes, "glyphs", torch.zeros_like(scenes.glyphs))
    for image, label in scenes:
        assert not image.any()
        assert not label.any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "test"}, "split"),
        ({"length": -1}, "length"),
        ({"size": (64, 31)}, "size"),
        ({"size": (64,)}, "size"),
        ({"digits": 0}, "digits"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"DigitScenes: {named} must"):
        DigitScenes(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_outside_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match="3 scenes"):
        DigitScenes(length=3)[index]


@pytest.mark.parametrize("missing", ["sklearn.datasets", "PIL"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    digit_scenes._sources.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'segops\[demo\]'"):
        DigitScenes()


def test_importing_the_module_does_not_import_scikit_learn_or_pillow() -> None:
    code = "import sys, segops.data; print([m for m in ('sklearn', 'PIL', 'matplotlib', 'rich') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
