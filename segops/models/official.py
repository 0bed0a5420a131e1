"""Published checkpoints: reading them without running their code, and giving their tensors our names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

_ENCLOSING = ("state_dict", "model_state", "model")
_PREFIXES = ("module.", "model.")
_COUNTER = ".num_batches_tracked"
_OF_TRAINING = "loss."  # what a wrapper of network and loss keeps beside ``model.``


def read(path: str | PathLike[str]) -> Mapping[str, Any]:
    """The mapping a checkpoint file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but tensors and plain values, or no mapping.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"segops.models: {path} cannot be read as tensors alone, and nothing else is loaded: {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"segops.models: {path} holds a {type(content).__name__}, expected a mapping of keys to tensors"
        )
    return content


def tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of what encloses them and without the prefixes that wrappers add.

    A prefix goes where every key has it. Entries that are no tensors, batch norm's counters and a loss's buffers are
    left out.
    """
    for name in _ENCLOSING:
        if isinstance(state_dict.get(name), Mapping):
            state_dict = state_dict[name]
    found = {
        key: value
        for key, value in state_dict.items()
        if isinstance(value, Tensor) and not key.endswith(_COUNTER) and not key.startswith(_OF_TRAINING)
    }
    while found and any(all(key.startswith(prefix) for key in found) for prefix in _PREFIXES):
        found = {key.partition(".")[2]: value for key, value in found.items()}
    return found


def renamed(
    name: str, state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]], drop: Sequence[str] = ()
) -> dict[str, Tensor]:
    r"""`state` with each key rewritten by the first rule whose pattern matches all of it.

    Args:
        name: of the network, for messages.
        state: official keys to tensors.
        rules: (regular expression, replacement as of :func:`re.sub`).
        drop: regular expressions of keys to leave out.

    Raises:
        ValueError: no rule matches a key, or two keys become one; the message names them.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if any(re.fullmatch(pattern, key) for pattern in drop):
            continue
        for pattern, replacement in compiled:
            match = pattern.fullmatch(key)
            if match is not None:
                new = match.expand(replacement)
                break
        else:
            raise ValueError(f"segops.models: {name!r} has no use for the key {key!r} of the checkpoint")
        if new in result:
            raise ValueError(f"segops.models: the key {key!r} of the checkpoint and another both become {new!r}")
        result[new] = value
    return result


def with_counters(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with a zero for each of batch norm's counters: no network's output depends on them."""
    counters = {key: torch.zeros((), dtype=torch.int64) for key in wanted if key.endswith(_COUNTER)}
    return {**counters, **state}


def key_in_file(
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]], file: Mapping[str, Tensor], ours: str
) -> str | None:
    """The official key of our key `ours`, or None if it cannot be told.

    It is one of `file`, or differs from one of them in its last part or in one number. Each is converted alone, so
    a network whose conversion needs several tensors at once may leave it unknown.

    Args:
        convert: of the network.
        file: the tensors of the checkpoint.
        ours: a key of the network's state.
    """
    tried = set()
    for key, value in _like(file):
        if key in tried:
            continue
        tried.add(key)
        try:
            made = convert({key: value})
        except (ValueError, LookupError, RuntimeError):
            continue
        # Where a conversion adds what a file may lack, the last part tells which of its results is this key's.
        if ours in made and (len(made) == 1 or key.rpartition(".")[2] == ours.rpartition(".")[2]):
            return key
    return None


def _like(file: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from file.items()
    last = sorted({key.rpartition(".")[2] for key in file} | {"weight", "bias", "running_mean", "running_var"})
    numbers = sorted({number for key in file for number in re.findall(r"\d+", key)})
    for key, value in file.items():
        stem, dot, _ = key.rpartition(".")
        yield from ((stem + dot + end, value) for end in last)
    for key, value in file.items():
        for match in re.finditer(r"\d+", key):
            yield from ((key[: match.start()] + number + key[match.end() :], value) for number in numbers)


def check(
    name: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], in_file: Callable[[str], str | None]
) -> None:
    """Raise a ValueError that names the first key of `state` that is unknown, missing or of another shape.

    Args:
        name: of the network.
        state: the converted tensors.
        wanted: what the network has.
        in_file: gives the official key of one of ours, or None (:func:`key_in_file`).
    """

    def named(key: str) -> str:
        found = in_file(key)
        return f"key {found!r}" if found is not None else f"key that becomes {key!r}"

    unknown = [key for key in state if key not in wanted]
    missing = [key for key in wanted if key not in state]
    for what, keys in (("unknown", unknown), ("missing", missing)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"segops.models: the checkpoint of {name!r} has the {what} {named(keys[0])}{more}")
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            shapes = f"{list(state[key].shape)}, expected {list(tensor.shape)}"
            raise ValueError(f"segops.models: the {named(key)} of the checkpoint of {name!r} has the shape {shapes}")
