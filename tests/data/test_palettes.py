"""Palettes, statistics and transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from segops.data import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    as_pair,
    cityscapes_train_ids,
    class_statistics,
    colorize,
    eval_transform,
    save_label_png,
    train_transform,
    voc_palette,
)


def test_cityscapes_is_as_torchvision_has_it() -> None:
    from torchvision.datasets import Cityscapes

    entries = {entry.train_id: entry for entry in Cityscapes.classes if 0 <= entry.train_id < 19}
    assert tuple(entries[i].name for i in range(19)) == CITYSCAPES_CLASSES
    assert CITYSCAPES_PALETTE.tolist() == [list(entries[i].color) for i in range(19)]
    for kind in (torch.tensor, np.array):
        for entry in Cityscapes.classes:
            expected = entry.train_id if entry.train_id in entries else 255
            assert cityscapes_train_ids(kind([[entry.id]])).tolist() == [[expected]]
    assert cityscapes_train_ids(Image.new("L", (3, 2), 7)).tolist() == [[0] * 3] * 2
    with pytest.raises(ValueError, match=r"got 0 \.\. 256"):
        cityscapes_train_ids(torch.tensor([[0, 256]]))


def test_the_palette_of_voc() -> None:
    known = {0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 8: [64, 0, 0], 20: [0, 64, 128], 255: [224, 224, 192]}
    palette = voc_palette()
    assert {i: palette[i].tolist() for i in known} == known
    assert palette.unique(dim=0).shape == (256, 3)
    with pytest.raises(ValueError, match="length"):
        voc_palette(257)


def test_label_maps_in_color(tmp_path: Path) -> None:
    labels = torch.tensor([[[0, 1, 2]], [[2, 255, 0]]])
    palette = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)
    painted = colorize(labels, palette, 255)
    assert painted.shape == (2, 3, 1, 3)
    assert painted[1, :, 0].T.tolist() == [[7, 8, 9], [0, 0, 0], [1, 2, 3]]
    path = tmp_path / "labels.png"
    save_label_png(path, labels[1], palette, 255)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array(image).tolist() == [[2, 255, 0]]
        assert np.array(image.convert("RGB")).tolist() == [[[7, 8, 9], [0, 0, 0], [1, 2, 3]]]
    for bad in (labels, labels - 1):
        with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 2"):
            colorize(bad, palette)
    with pytest.raises(TypeError, match="labels must be integers"):
        colorize(labels.float(), palette)
    with pytest.raises(TypeError, match="palette must be uint8"):
        colorize(labels, palette.float())


class Masks:
    num_classes, ignore_index = 3, 9

    def __init__(self, *masks: list[int]) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[None, torch.Tensor]:
        return None, torch.tensor([self.masks[index]])


def test_statistics_count_and_weigh() -> None:
    found = class_statistics(Masks([0, 0, 0, 1, 9, 9], [0, 0, 0, 0]))
    assert [part.tolist() for part in found] == [[7, 1, 0], [2, 1, 0], [8, 4, 0]]
    median = (7 / 8 + 1 / 4) / 2
    np.testing.assert_allclose(found.median_frequency_weights(), [median / (7 / 8), median * 4, 0], rtol=1e-6)
    np.testing.assert_allclose(found.inverse_frequency_weights(), [2 / 8, 2 * 7 / 8, 0], rtol=1e-6)
    assert not class_statistics(Masks()).median_frequency_weights().any()
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 2, item 1 has 0 \.\. 3"):
        class_statistics(Masks([0], [0, 3]))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_an_image_and_its_mask_are_cut_alike(kind: torch.dtype) -> None:
    """The image shows the label of each pixel; colours stay, so that it still must after the transform."""
    mask = torch.arange(4).repeat_interleave(10).expand(30, 40).clone()
    mask[:15] = mask[:15].flip(1)
    image = (mask * 60).expand(3, 30, 40).to(torch.uint8)
    image = image if kind == torch.uint8 else image.float() / 255
    transform = train_transform((50, 45), 9, scale=(0.6, 2.0), jitter=0, mean=(0.5,) * 3, std=(1.0,) * 3)
    seen = []
    for seed in range(8):
        torch.manual_seed(seed)
        cut, labels = transform(*as_pair(image, mask))
        torch.manual_seed(seed)
        again = transform(*as_pair(image, mask))
        assert torch.equal(cut, again[0])
        assert torch.equal(labels, again[1])
        assert cut.shape == (3, 50, 45)
        value = torch.where(labels == 9, 0.0, labels * 60 / 255 - 0.5)
        off = (cut[0] - value).abs() > 1 / 255
        around = F.pad(labels[None].float(), (4, 4, 4, 4), mode="replicate")
        alike = F.max_pool2d(around, 9, 1)[0] == -F.max_pool2d(-around, 9, 1)[0]
        assert alike.float().mean() > 0.2
        assert not off[alike].any()  # beside a border of labels the image blends two of them
        seen.append(labels)
    assert any((labels == 9).any() for labels in seen)
    assert len({labels.numpy().tobytes() for labels in seen}) == 8


def test_evaluation_normalises_and_resizes() -> None:
    image, mask = torch.full((3, 6, 8), 255, dtype=torch.uint8), torch.ones(6, 8, dtype=torch.int64)
    found, labels = eval_transform(mean=(0.5,) * 3, std=(0.25,) * 3)(*as_pair(image, mask))
    assert torch.equal(found, torch.full((3, 6, 8), 2.0))
    assert torch.equal(labels, mask)
    assert eval_transform((3, 5))(*as_pair(image, mask))[1].shape == (3, 5)
    with pytest.raises(ValueError, match="image and mask must be"):
        as_pair(image, mask[1:])
    with pytest.raises(ValueError, match="size must be"):
        train_transform((0, 5), 9)
    with pytest.raises(ValueError, match="scale must be"):
        train_transform((5, 5), 9, scale=(0, 1))
