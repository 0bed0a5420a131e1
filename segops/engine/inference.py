"""A trained network at work: measured on a split, or labelling image files. All that is needed is its checkpoint."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from segops.data import colorize, read_image, save_label_png
from segops.data.files import IMAGE_SUFFIXES
from segops.engine import checkpoint, datasets
from segops.engine.checkpoint import Checkpoint, Classes
from segops.engine.config import TrainConfig
from segops.engine.evaluate import Preparation, measure
from segops.engine.output import RunError
from segops.engine.ranks import chosen_device, started
from segops.prediction import predict as label


def evaluate(
    path: Path,
    data: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
) -> tuple[dict[str, Any], Classes, bool]:
    """Measure the network of a checkpoint; None stands for what it was trained with, of the same data.

    Returns:
        The scores of :func:`segops.engine.evaluate.measure`, the classes, and whether this is the first process, whose
        part it is to show them.

    Raises:
        RunError: no such checkpoint or data, or data of other classes.
    """
    found = checkpoint.load(path)
    config = TrainConfig.of(found.config)
    name = data or config.data
    root = config.root if root is None and name == config.data else root
    dataset = datasets.open_split(name, root, split or config.val_split)
    if len(dataset.classes) != len(found.classes.names):
        raise RunError(f"{path} tells {len(found.classes.names)} classes apart, {name} has {len(dataset.classes)}")
    model = found.network(path)
    with started(device) as ranks:
        batches = datasets.batches_of_one_size(datasets.Share(dataset, ranks.rank, ranks.count), batch_size, workers)
        scores, _ = measure(
            model.to(ranks.device), batches, _preparation(config), ranks, _channels(found), dataset.ignore_index
        )
        return scores, found.classes, ranks.first


def predict(
    path: Path,
    patterns: Sequence[str],
    out: Path,
    overlay: bool,
    device: str,
    warn: Callable[[str], None],
    tile: int | None = None,
    overlap: float = 0.25,
) -> tuple[int, list[str]]:
    """Label image files with the network of a checkpoint.

    ``out/NAME.png`` has a palette: its values are the class indices, its colours the dataset's. Images of a folder keep
    their subfolders.

    Args:
        path: of the checkpoint.
        patterns: files, folders, or glob patterns.
        out: folder to write to.
        overlay: also write ``NAME_overlay.png``, half image, half colours.
        device: "auto", "cpu", "cuda" or "cuda:N".
        warn: gets a line for each image that cannot be labelled.
        tile, overlap: of :func:`segops.predict`, in pixels of what goes into the network.

    Returns:
        How many images were labelled, and the files that could not be.

    Raises:
        RunError: no such checkpoint, nothing to label, a folder that cannot be written to, or one where a result would
            take the place of an image.
    """
    found = checkpoint.load(path)
    files = image_files(patterns)
    images = {source.resolve(): source for source in files.values()}
    for target in files:
        for name in (f"{target}.png", f"{target}_overlay.png"):
            if source := images.get((out / name).resolve()):
                raise RunError(f"a result would be written over the image {source}: choose another folder for them")
    place = chosen_device(device)
    model = found.network(path).to(place)
    prepare = _preparation(TrainConfig.of(found.config))
    failed: list[str] = []
    for target, source in files.items():
        try:
            image = read_image(source)
            pixels = prepare(image[None].float() / 255, place)
            labels = label(model, pixels, size=tuple(image.shape[1:]), tile=tile, overlap=overlap)[0].cpu()
        except (OSError, ValueError) as error:  # no image, or of a size that the network does not take
            text = str(error)
            warn(text if text.startswith(str(source)) else f"{source}: {text}")
            failed.append(str(source))
            continue
        _write(out / target, image, labels, found.classes, overlay)
    return len(files) - len(failed), failed


def image_files(patterns: Sequence[str]) -> dict[Path, Path]:
    """Image files by the name, without suffix, that their results are to have.

    Raises:
        RunError: a pattern that matches nothing, or two images whose results would have one name.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            sources = {
                file.relative_to(path).with_suffix(""): file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in IMAGE_SUFFIXES
            }
        else:
            matches = [path] if path.exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
            sources = {Path(file.stem): file for file in matches if file.is_file()}
            if len(sources) < len(matches):
                raise RunError(f"{pattern!r} has images of the same name in different folders: give the folder itself")
        if not sources:
            raise RunError(f"there is no image {pattern!r}")
        for name, source in sources.items():
            if files.setdefault(name, source) != source:
                raise RunError(f"the results of {files[name]} and {source} would have one name")
    return files


def _preparation(config: TrainConfig) -> Preparation:
    return Preparation(config.mean, config.std, config.resize, config.channels_last)


def _channels(found: Checkpoint) -> int:
    assert found.model is not None
    return found.model.num_classes


def _write(target: Path, image: Tensor, labels: Tensor, classes: Classes, overlay: bool) -> None:
    palette, labels = torch.tensor(classes.palette, dtype=torch.uint8), labels.to(torch.int64)

    def save_overlay(path: Path) -> None:
        both = (image.float() + colorize(labels, palette).float()) / 2
        Image.fromarray(both.byte().movedim(0, -1).numpy()).save(path, format="PNG")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _whole(target.with_name(f"{target.name}.png"), lambda path: save_label_png(path, labels, palette))
        if overlay:
            _whole(target.with_name(f"{target.name}_overlay.png"), save_overlay)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error


def _whole(path: Path, save: Callable[[Path], None]) -> None:
    """A file under its name only when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    save(partial)
    os.replace(partial, path)
