"""What a training run is told: one dataclass, whose values come from defaults, a YAML file and the command line."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from segops.engine.output import RunError


class ConfigError(RunError):
    """A setting that cannot be; the message names it, what was expected and the value."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)


@dataclass(frozen=True)
class About:
    """What a setting means, and what it may be.

    Attributes:
        section: under which the command line lists it.
        help: what it means.
        above, least: its range, or that of its items.
    """

    section: str
    help: str
    above: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run. `segops train --help` and this class tell the same, from the same words."""

    model: Annotated[str, About("Network", "Network, a name that `segops models` lists.")] = "unet"
    num_classes: Annotated[
        int | None, About("Network", "Channels of its logits; by default the data's classes.", least=1)
    ] = None
    model_options: Annotated[dict[str, Any], About("Network", "Options of the network, as name=value.")] = (
        dataclasses.field(default_factory=dict)
    )
    weights: Annotated[Path | None, About("Network", "Checkpoint to start from: of segops, or a published one.")] = None
    freeze_norm: Annotated[bool, About("Network", "Keep batch norm's statistics as they are.")] = False

    data: Annotated[str, About("Data", "Dataset, a name of segops.data.open_dataset.")] = "digits"
    root: Annotated[Path | None, About("Data", "Its folder, where it needs one.")] = None
    train_split: Annotated[str, About("Data", "Split to train on.")] = "train"
    val_split: Annotated[str, About("Data", "Split to measure on.")] = "val"
    resize: Annotated[
        tuple[int, int] | None, About("Data", "Height and width that images are brought to.", least=1)
    ] = None
    crop: Annotated[tuple[int, int] | None, About("Data", "Height and width of random crops to train on.", least=1)] = (
        None
    )
    scale: Annotated[tuple[float, float] | None, About("Data", "Range of random scales before the crop.", above=0)] = (
        None
    )
    flip: Annotated[bool, About("Data", "Mirror every other image in training.")] = True
    mean: Annotated[tuple[float, float, float], About("Data", "Subtracted from the channels.")] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, float, float], About("Data", "Divides the channels.", above=0)] = (0.229, 0.224, 0.225)
    workers: Annotated[int, About("Data", "Processes that read images, besides the training one.", least=0)] = 0

    loss: Annotated[
        Literal["auto", "dice_ce", "dice_bce", "ohem", "u2net", "basnet"],
        About(
            "Loss",
            "Softmax (dice_ce) or sigmoid loss (dice_bce), auto takes the sigmoid's for one class; ohem: cross-entropy "
            "of each process's hard pixels; u2net, basnet (no ignored pixels): what these networks were trained with.",
        ),
    ] = "auto"
    ohem_threshold: Annotated[
        float, About("Loss", "Of ohem: hard is a pixel whose class has a lower probability.", above=0)
    ] = 0.9
    ohem_min_kept: Annotated[int, About("Loss", "Of ohem: pixels that count at least.", least=1)] = 131072
    pixel_term: Annotated[float, About("Loss", "Factor of the (binary) cross-entropy.", least=0)] = 1.0
    dice_term: Annotated[float, About("Loss", "Factor of the Dice loss.", least=0)] = 1.0
    batch_dice: Annotated[bool, About("Loss", "Dice of the whole batch rather than of each image.")] = True
    label_smoothing: Annotated[float, About("Loss", "Of the cross-entropy, in [0, 1].", least=0)] = 0.0
    class_weights: Annotated[
        Literal["none", "median"],
        About("Loss", "Weights of the cross-entropy: median frequency over frequency of each class."),
    ] = "none"
    side_weights: Annotated[
        tuple[float, ...] | None, About("Loss", "Factor of each side output, finest first; by default 1.", least=0)
    ] = None

    epochs: Annotated[int, About("Optimisation", "Passes over the training data.", least=1)] = 10
    steps: Annotated[int | None, About("Optimisation", "Training steps, in place of epochs.", least=1)] = None
    batch_size: Annotated[int, About("Optimisation", "Images of a step, over all processes.", least=1)] = 8
    optimizer: Annotated[Literal["adamw", "sgd"], About("Optimisation", "SGD is with Nesterov's momentum.")] = "adamw"
    lr: Annotated[float, About("Optimisation", "Peak learning rate.", above=0)] = 1e-3
    momentum: Annotated[float, About("Optimisation", "Of SGD.", least=0)] = 0.9
    weight_decay: Annotated[float, About("Optimisation", "Of weights with two or more dimensions.", least=0)] = 1e-4
    schedule: Annotated[
        Literal["poly", "cosine", "constant"], About("Optimisation", "How the learning rate falls.")
    ] = "poly"
    power: Annotated[float, About("Optimisation", "Of the poly schedule.", above=0)] = 0.9
    warmup: Annotated[int, About("Optimisation", "Steps of a linear rise before that.", least=0)] = 0
    clip: Annotated[float | None, About("Optimisation", "Largest norm of the gradient.", above=0)] = None
    ema: Annotated[
        float | None, About("Optimisation", "Decay of a running mean of the weights, used to measure.", above=0)
    ] = None
    sync_norm: Annotated[
        bool, About("Optimisation", "Batch norm over the images of all processes; on CUDA devices.")
    ] = False
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], About("Optimisation", "16 bits by autocast; fp16 with a scaled loss.")
    ] = "fp32"
    channels_last: Annotated[bool, About("Optimisation", "Layout of weights and images.")] = True

    out: Annotated[Path, About("Run", "Folder for checkpoints, records and pictures.")] = Path("segops-run")
    seed: Annotated[int, About("Run", "Of the weights, the order of the images and their augmentation.", least=0)] = 0
    device: Annotated[str, About("Run", "auto, cpu, cuda or cuda:N.")] = "auto"
    threads: Annotated[int | None, About("Run", "Threads of PyTorch; by default its own choice.", least=1)] = None
    log_every: Annotated[int, About("Run", "Steps between lines of train.csv.", least=1)] = 10
    val_every: Annotated[int | None, About("Run", "Steps between measurements; by default an epoch.", least=1)] = None
    save_every: Annotated[
        int, About("Run", "Steps between checkpoints, besides those after each measurement.", least=1)
    ] = 500
    pictures: Annotated[
        int, About("Run", "Validation images in the picture of each measurement; 0 for none.", least=0)
    ] = 4
    tensorboard: Annotated[bool, About("Run", "Write event files for TensorBoard, too.")] = False

    def __post_init__(self) -> None:
        for name, about in abouts().items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                _check_range(name, about, item)
        if self.ema is not None and self.ema >= 1:
            raise ConfigError(f"ema must be below 1, got {self.ema}")
        if self.ohem_threshold > 1:
            raise ConfigError(f"ohem_threshold must be at most 1, got {self.ohem_threshold}")
        if self.label_smoothing > 1:
            raise ConfigError(f"label_smoothing must be at most 1, got {self.label_smoothing}")
        if self.loss in ("ohem", "u2net", "basnet"):  # they have their terms
            for name in ("pixel_term", "dice_term", "batch_dice", "label_smoothing"):
                if getattr(self, name) != getattr(TrainConfig, name):
                    raise ConfigError(f"loss {self.loss!r} has no {name}, got {getattr(self, name)}")
        if self.pixel_term == self.dice_term == 0:
            raise ConfigError("pixel_term and dice_term must not both be 0")
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise ConfigError(f"scale must be a smaller and a larger number, got {self.scale}")

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "") -> TrainConfig:
        """The configuration with `values` in place of its defaults.

        Args:
            values: by name, as YAML has them: lists for tuples, strings for paths and for choices.
            source: where they come from, for messages.

        Raises:
            ConfigError: an unknown name, or a value of the wrong type or out of range.
        """
        hints, where = get_type_hints(cls), f"{source}: " if source else ""
        converted = {}
        for name, value in values.items():
            if name not in hints:
                raise ConfigError(f"{where}unknown setting {name!r}; there are {', '.join(hints)}")
            try:
                converted[name] = _converted(value, hints[name])
            except (TypeError, ValueError):
                raise ConfigError(f"{where}{name} must be {_described(hints[name])}, got {value!r}") from None
        try:
            return cls(**converted)
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from None

    def plain(self) -> dict[str, Any]:
        """The values as YAML and checkpoints hold them; :meth:`of` makes the same configuration of them."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, of names as in :class:`TrainConfig`.

    Raises:
        RunError: there is no such file, or it cannot be read.
        ConfigError: it holds something else.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"{path} must be a mapping of settings to values, got {type(content).__name__}")
    return content


def abouts() -> dict[str, About]:
    """What each setting means, by its name."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def _check_range(name: str, about: About, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value}")
    if value is not None and about.above is not None and value <= about.above:
        raise ConfigError(f"{name} must be above {about.above}, got {value}")
    if value is not None and about.least is not None and value < about.least:
        raise ConfigError(f"{name} must be at least {about.least}, got {value}")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of ``X | None``, or the one type that `hint` is."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _converted(value: Any, hint: Any) -> Any:
    """`value` as a `hint`; TypeError or ValueError if it is none."""
    options = alternatives(hint)
    if value is None and type(None) in options:
        return None
    hint, origin = options[0], get_origin(options[0])
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    if origin is tuple:
        items = get_args(hint)
        if not isinstance(value, list | tuple):
            raise TypeError
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        return tuple(_converted(v, item) for v, item in zip(value, items, strict=True))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return dict(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    # YAML reads 1e-3 as a string: its numbers with an exponent have a point.
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", Path: "a path"}


def _described(hint: Any) -> str:
    options = alternatives(hint)
    hint, origin = options[0], get_origin(options[0])
    if origin is Literal:
        text = " or ".join(map(repr, get_args(hint)))
    elif origin is tuple:
        items = get_args(hint)
        number = "" if items[-1] is Ellipsis else f"{len(items)} "
        text = f"a list of {number}{'whole numbers' if items[0] is int else 'numbers'}"
    elif origin is dict:
        text = "a mapping of names to values"
    else:
        text = _NAMES[hint]
    return f"{text} or null" if type(None) in options else text


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
