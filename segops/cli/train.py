"""segops train: every setting of segops.engine.config.TrainConfig is an option."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.console import Console

from segops import models
from segops.data import DATASETS
from segops.engine.config import ConfigError, TrainConfig, abouts, alternatives, read_yaml

_COMPLETIONS = {"model": models.list_models, "data": lambda: list(DATASETS)}


def train(config: Path | None, resume: Path | None, **settings: Any) -> None:
    """Train a network, with checkpoints, CSV records and pictures in a folder; Ctrl-C stops after a step.

    Several processes: torchrun --nproc-per-node=N -m segops train ...; the batch is shared out to them. Settings come
    from --resume, then from --config, then from the options.
    """
    from segops.engine import checkpoint
    from segops.engine.run import train as run
    from segops.engine.trainer import LAST

    values: dict[str, Any] = {}
    if resume is not None:
        resume = resume / LAST if resume.is_dir() else resume
        values |= checkpoint.load(resume).config | {"out": resume.parent}
    if config is not None:
        given = read_yaml(config)
        TrainConfig.of(given, str(config))  # its errors name the file
        values |= given
    values |= {name: _value(name, text) for name, text in settings.items() if text is not None}
    run(TrainConfig.of(values), resume, Console())


def _value(name: str, given: Any) -> Any:
    """What the command line gave, as YAML would have it."""
    hint = alternatives(get_type_hints(TrainConfig)[name])[0]
    if get_origin(hint) is dict:
        return dict(_pair(name, item) for item in given)
    if get_origin(hint) is tuple:
        return [_scalar(item) for item in given.split(",")]
    return _scalar(given) if hint in (int, float) else given


def _pair(name: str, item: str) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if not equals:
        raise ConfigError(f"{name} must be name=value, got {item!r}")
    return key, _scalar(text)


def _scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _options() -> Sequence[inspect.Parameter]:
    """A parameter for each setting; None where the command line does not give it."""
    hints, defaults = get_type_hints(TrainConfig), TrainConfig().plain()
    parameters = []
    for name, about in abouts().items():
        hint, default = alternatives(hints[name])[0], defaults[name]
        flag = f"--{name.replace('_', '-')}"
        kind: Any = str
        names, metavar = [flag], None
        if hint is bool:
            kind, names = bool, [f"{flag}/--no-{flag[2:]}"]
        elif get_origin(hint) is dict:
            kind, metavar = list[str], "NAME=VALUE"
        elif get_origin(hint) is tuple:
            metavar = "X,..." if get_args(hint)[-1] is Ellipsis else ",".join("X" * len(get_args(hint)))
        elif get_origin(hint) is Literal:
            metavar = "|".join(get_args(hint))
        else:
            metavar = {int: "N", float: "X", Path: "PATH"}.get(hint, "NAME")
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        text = about.help if default in (None, {}) else f"{about.help} (default: {shown})"
        if hint is bool:
            text = f"{about.help} (default: {'yes' if default else 'no'})"
        completion = _COMPLETIONS.get(name)
        option = typer.Option(
            *names,
            metavar=metavar,
            help=text,
            rich_help_panel=about.section,
            show_default=False,
            autocompletion=completion,
        )
        annotation = Annotated[kind | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


def _own() -> Sequence[inspect.Parameter]:
    config = typer.Option(metavar="FILE", help="YAML file of settings, named as here but with _ for -.")
    resume = typer.Option(metavar="PATH", help="Folder or checkpoint of a run to continue, in the same folder.")
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[Path | None, option])
        for name, option in (("config", config), ("resume", resume))
    ]


train.__signature__ = inspect.Signature([*_own(), *_options()])  # type: ignore[attr-defined]
train.__annotations__ = {p.name: p.annotation for p in train.__signature__.parameters.values()}  # type: ignore[attr-defined]
