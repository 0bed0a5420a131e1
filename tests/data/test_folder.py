"""Datasets of files: what an item is, the layouts, and every corrupt input named."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from segops.data import (
    CAMVID_PALETTE,
    DataError,
    ImageMaskFolder,
    MaskFiles,
    class_statistics,
    open_dataset,
    read_image,
    train_transform,
)
from tests.metrics.data import DATA

CLASSES = ("a", "b", "c")
COLORS = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=torch.uint8)


def picture(path: Path, size: tuple[int, int] = (7, 5), seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def labelled(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette(COLORS.numpy().tobytes() + bytes(3 * 253))
    image.save(path)


LABELS = np.random.default_rng(1).integers(0, 3, (7, 5))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(("one", "two")):
        picture(tmp_path / "images" / f"{name}.png", seed=i)
        labelled(tmp_path / "masks" / f"{name}.png", LABELS, palette=bool(i))
    (tmp_path / "train.txt").write_text("one\n\ntwo.png\n")
    return tmp_path


@pytest.mark.parametrize("split", ["train", None])
def test_an_item_is_the_image_and_its_labels(root: Path, split: str | None) -> None:
    """Of a grey and a palette PNG alike."""
    data = ImageMaskFolder(root, split, CLASSES)
    assert len(data) == 2
    for i, (image, mask) in enumerate(data[i] for i in range(2)):
        expected = np.array(Image.open(root / "images" / f"{('one', 'two')[i]}.png"))
        np.testing.assert_array_equal((image * 255).round().byte().numpy(), expected.transpose(2, 0, 1))
        assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(mask.numpy(), LABELS)
    assert (data.num_classes, data.classes, data.ignore_index) == (3, CLASSES, 255)
    assert data.palette.shape == (3, 3)


def test_masks_by_color_and_binary_ones(root: Path) -> None:
    colors = COLORS.numpy()[LABELS]
    colors[0, 0] = 9, 9, 9
    Image.fromarray(colors).save(root / "masks" / "one.png")
    data = ImageMaskFolder(root, "train", CLASSES, masks="color", palette=COLORS, ignore_color=(9, 9, 9))
    expected = LABELS.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(data[0][1].numpy(), expected)
    with pytest.raises(DataError, match=r"one\.png: 1 color.*#090909"):
        ImageMaskFolder(root, "train", CLASSES, masks="color", palette=COLORS)[0]

    grey = np.array([[0, 127, 128, 129, 255]] * 7)
    labelled(root / "masks" / "one.png", grey)
    data = ImageMaskFolder(root, "train", ("off", "on"), masks="binary")
    mask = data[0][1]
    assert (data.num_classes, mask.dtype) == (1, torch.uint8)
    assert mask[0].tolist() == [0, 0, 0, 1, 1]
    Image.fromarray(grey > 128).save(root / "masks" / "one.png")
    assert data[0][1][0].tolist() == [0, 0, 0, 1, 1]


def test_pairs_in_a_list_start_at_the_root(root: Path) -> None:
    (root / "val.txt").write_text("images/two.png masks/one.png\n")
    assert ImageMaskFolder(root, "val", CLASSES).pairs == [(root / "images/two.png", root / "masks/one.png")]


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("one two three", DataError, r"train\.txt:2: a line must be .* got 3 words"),
        ("../one", DataError, r"train\.txt:2: '\.\./one' leaves"),
        ("images/../../x.png masks/one.png", DataError, r"train\.txt:2: .* leaves"),
        ("/etc/passwd masks/one.png", DataError, r"train\.txt:2: '/etc/passwd' leaves"),
        ("..\\one", DataError, r"train\.txt:2: .* leaves"),
        ("three", FileNotFoundError, r"images/three: no such file .*train\.txt:2"),
        ("images/one.png masks/three.png", FileNotFoundError, r"masks/three\.png: no such file .*train\.txt:2"),
    ],
)
def test_a_bad_line_is_named(root: Path, line: str, error: type[Exception], message: str) -> None:
    (root / "train.txt").write_text(f"one\n{line}\n")
    with pytest.raises(error, match=message):
        ImageMaskFolder(root, "train", CLASSES)


def test_a_list_that_is_none(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"val\.txt: no such list; splits with a list: train"):
        ImageMaskFolder(root, "val", CLASSES)
    (root / "val.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"val\.txt: the list is empty"):
        ImageMaskFolder(root, "val", CLASSES)
    (root / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"val\.txt: a list must be UTF-8"):
        ImageMaskFolder(root, "val", CLASSES)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        ImageMaskFolder(root / "absent", "train", CLASSES)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    picture(path, (64, 64))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"cut\{suffix}: cannot be read"):
            read_image(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"cut\{suffix}: no such file"):
        read_image(path)


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    """Where pillow warns (from 89 million pixels on), and where it refuses."""
    path = tmp_path / "bomb.png"
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = struct.pack(">II", side, side)  # width and height of the IHDR chunk, and its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"bomb\.png: a file of {len(data)} bytes .*{side * side} pixels"):
        read_image(path)


def test_masks_that_do_not_fit_are_named(root: Path) -> None:
    data = ImageMaskFolder(root, "train", CLASSES)
    bad = LABELS.copy()
    bad[2, 3] = 7
    bad[0, 0] = 255
    labelled(root / "masks" / "one.png", bad)
    with pytest.raises(DataError, match=r"masks/one\.png: labels .* got 1 others; the first is 7 in row 2, column 3"):
        data[0]
    labelled(root / "masks" / "one.png", LABELS[:6])
    with pytest.raises(DataError, match=r"masks/one\.png: a mask of 6 x 5 pixels for an image of 7 x 5, .*images/one"):
        data[0]
    picture(root / "masks" / "one.png")
    with pytest.raises(DataError, match=r"masks/one\.png: a mask of class numbers must be .* got mode RGB"):
        data[0]


def test_what_an_image_may_be(tmp_path: Path) -> None:
    """Of 16 bits the upper eight; an alpha channel and a palette are seen through."""
    path = tmp_path / "a.png"
    deep = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2200
    Image.fromarray(deep).save(path)
    for channel in read_image(path):
        np.testing.assert_array_equal(channel.numpy(), deep >> 8)
    color = np.random.default_rng(3).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(color, "RGBA").save(path)
    np.testing.assert_array_equal(read_image(path).numpy(), color[..., :3].transpose(2, 0, 1))
    Image.fromarray(color[..., [0, 3]], "LA").save(path)
    np.testing.assert_array_equal(read_image(path).numpy(), color[..., [0, 0, 0]].transpose(2, 0, 1))
    labelled(path, LABELS, palette=True)
    np.testing.assert_array_equal(read_image(path).numpy(), COLORS.numpy()[LABELS].transpose(2, 0, 1))
    for values in (np.ones((5, 6), np.float32), np.ones((5, 6), np.int32)):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"a\.tif: pixels must have at most 16 bits a channel, got mode [FI]"):
            read_image(tmp_path / "a.tif")


def test_what_a_mask_may_be(root: Path) -> None:
    path = root / "masks" / "one.png"
    Image.fromarray(LABELS.astype(np.uint16)).save(path)
    np.testing.assert_array_equal(ImageMaskFolder(root, "train", CLASSES)[0][1], LABELS)
    Image.fromarray((LABELS + 256).astype(np.uint16)).save(path)
    with pytest.raises(DataError, match=r"one\.png: labels must be in 0 \.\. 2 or 255 \(ignored\), got 35 others"):
        ImageMaskFolder(root, "train", CLASSES)[0]

    data = ImageMaskFolder(root, "train", ("off", "on"), masks="binary")
    Image.fromarray(((LABELS == 1) * 60000 + (LABELS == 2) * 300).astype(np.uint16)).save(path)
    np.testing.assert_array_equal(data[0][1], LABELS == 1)
    for values in (LABELS == 1, (LABELS > 1) * 128):
        labelled(path, values)
        with pytest.raises(DataError, match=r"one\.png: a binary mask must be lighter .* is 0 or 1"):
            data[0]
    for values in (LABELS * 0, LABELS * 60, LABELS * 0 + 255):  # nothing there, noise, everything
        labelled(path, values)
        np.testing.assert_array_equal(data[0][1], values > 128)

    color = np.full((7, 5, 4), 255, np.uint8)
    Image.fromarray(color, "RGBA").save(path)
    assert data[0][1].min() == 1
    color[3, 3, 3] = 254
    Image.fromarray(color, "RGBA").save(path)
    for options in ({"masks": "binary"}, {"masks": "color", "palette": COLORS[[0, 1]]}):
        with pytest.raises(DataError, match=r"one\.png: a mask must have no transparent pixels"):
            ImageMaskFolder(root, "train", ("off", "on"), **options)[0]


@pytest.mark.parametrize("line", ["my photo 1", "my photo 1.JPG", "images/my photo 1.JPG\tmasks/my photo 1.PNG"])
def test_names_may_have_spaces_and_upper_case_suffixes(root: Path, line: str) -> None:
    picture(root / "images" / "my photo 1.JPG")
    labelled(root / "masks" / "my photo 1.PNG", LABELS)
    (root / "train.txt").write_text(f"one\n{line}\n", encoding="utf-8-sig")
    data = ImageMaskFolder(root, "train", CLASSES)
    assert [path.name for path in data.pairs[1]] == ["my photo 1.JPG", "my photo 1.PNG"]
    assert data.pairs[0][0].name == "one.png"
    assert len(ImageMaskFolder(root, None, CLASSES)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "colour"}, "masks must be one of"),
        ({"masks": "binary"}, "two classes"),
        ({"palette": COLORS[:2]}, r"palette must be uint8 \[3, 3\]"),
        ({"palette": COLORS * 0, "masks": "color"}, "color of its own"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskFiles([], CLASSES, **options)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_change_nothing(root: Path, context: str) -> None:
    data = ImageMaskFolder(root, "train", CLASSES)
    images, masks = next(iter(DataLoader(data, 2, num_workers=1, multiprocessing_context=context)))
    assert torch.equal(images, torch.stack([data[i][0] for i in range(2)]))
    assert torch.equal(masks, torch.stack([data[i][1] for i in range(2)]))


def test_transforms_go_to_worker_processes_and_follow_the_loaders_generator(root: Path) -> None:
    data = open_dataset("folder", root, "train", train_transform((6, 6), 255))
    data = pickle.loads(pickle.dumps(data))
    (first, mask), (again, _) = (
        next(iter(DataLoader(data, 2, num_workers=1, generator=torch.Generator().manual_seed(3)))) for _ in range(2)
    )
    assert first.shape == (2, 3, 6, 6)
    assert mask.shape == (2, 6, 6)
    assert torch.equal(first, again)


def test_names_of_the_registry(root: Path) -> None:
    assert open_dataset("folder", root, "train").num_classes == 1
    (root / "classes.txt").write_text("sky\nsea\nland\n")
    assert open_dataset("folder", root, "train").classes == ("sky", "sea", "land")
    (root / "classes.txt").write_text("the sky\nthe sea\n")
    assert open_dataset("folder", root, "train").classes == ("the sky", "the sea")
    (root / "classes.txt").write_text("sky\nsea\nsky\n")
    with pytest.raises(DataError, match=r"classes\.txt:3: a second class 'sky'"):
        open_dataset("folder", root, "train")
    for name in ("cityscapes", "voc"):
        with pytest.raises(DataError, match=f"not the layout of {name}"):
            open_dataset(name, root, "train")
    with pytest.raises(ValueError, match="name must be one of camvid"):
        open_dataset("kitti", root, "train")
    with pytest.raises(ValueError, match="root must be the folder of voc, got None"):
        open_dataset("voc", None, "train")
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        open_dataset("voc", root / "absent", "train")
    with pytest.raises(ValueError, match="root must be None for digits"):
        open_dataset("digits", root, "train")
    image, mask = open_dataset("digits", None, "val", train_transform((32, 48), 255))[0]
    assert (image.shape, mask.shape, type(mask)) == ((3, 32, 48), (32, 48), torch.Tensor)


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    picture(tmp_path / "leftImg8bit/train/ulm/ulm_0_0_leftImg8bit.png")
    ids = np.arange(35).reshape(7, 5)
    ids[-1, -1] = 255
    labelled(tmp_path / "gtFine/train/ulm/ulm_0_0_gtFine_labelIds.png", ids)
    data = open_dataset("cityscapes", tmp_path, "train")
    from torchvision.datasets import Cityscapes

    train = {entry.id: entry.train_id if 0 <= entry.train_id < 19 else 255 for entry in Cityscapes.classes}
    assert data[0][1].flatten().tolist() == [train.get(value, 255) for value in ids.flatten().tolist()]
    assert data.num_classes == 19


def test_voc_masks_in_torchvisions_layout(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit/VOC2012"
    picture(base / "JPEGImages/a.jpg")
    labelled(base / "SegmentationClass/a.png", np.where(LABELS == 2, 255, LABELS), palette=True)
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/val.txt").write_text("a\n")
    data = open_dataset("voc", tmp_path, "val")
    np.testing.assert_array_equal(data[0][1], np.where(LABELS == 2, 255, LABELS))
    assert len(data.classes) == data.num_classes == len(data.palette) == 21


def test_camvid_and_its_weights_are_those_of_segnet() -> None:
    if not (DATA / "camvid").is_dir():
        pytest.skip(f"no camvid in {DATA} (set SEGOPS_TEST_DATA)")
    data = open_dataset("camvid", DATA / "camvid", "train")
    assert (data.num_classes, data.ignore_index) == (11, 11)
    assert torch.equal(data.palette, CAMVID_PALETTE)
    image, mask = data[0]
    assert image.shape == (3, 360, 480)
    assert mask.max() == 11
    weights = class_statistics(data).median_frequency_weights()
    # Of the whole training list; a third of it has other shares of the rare ones.
    official = [0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
    ratio = weights / torch.tensor(official)
    assert ratio.min() > 1 / 3
    assert ratio.max() < 3
    assert (ratio[:6] - 1).abs().max() < 0.15


def test_sod_is_binary_in_both_orientations() -> None:
    if not (DATA / "salient").is_dir():
        pytest.skip(f"no salient in {DATA} (set SEGOPS_TEST_DATA)")
    data = open_dataset("sod", DATA / "salient", "test")
    assert (data.num_classes, len(data), len(data.classes)) == (1, 60, 2)
    shapes = set()
    for i in range(0, 60, 6):
        image, mask = data[i]
        shapes.add(tuple(image.shape))
        assert set(mask.unique().tolist()) == {0, 1}
    assert shapes == {(3, 321, 481), (3, 481, 321)}
