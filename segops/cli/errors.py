"""How a command ends: exit code 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C; one line for all but 0."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import torch
import typer
from typer.core import TyperGroup

from segops.engine.output import RunError


class Commands(TyperGroup):
    """A group whose usage errors take one line, like all others."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.Abort:
            _print("interrupted")
            code = 130
        except Exception as error:
            if not hasattr(error, "format_message"):  # click's errors of usage have it, under any of its names
                raise
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "segops"
            _print(f"{' '.join(error.format_message().split())} (see: {command} --help)")
            code = getattr(error, "exit_code", 2)
        sys.exit(code if isinstance(code, int) else 0)


def reported(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as a command whose errors become one line, with an option --debug for the traceback."""

    @functools.wraps(function)
    def command(*, debug: bool, **arguments: Any) -> None:
        try:
            function(**arguments)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            message, code = _line(error)
            _print(message)
            raise typer.Exit(code) from None

    option = Annotated[bool, typer.Option("--debug", help="Show where in the program an error came from.")]
    hints = get_type_hints(function, include_extras=True)
    given = getattr(function, "__signature__", None) or inspect.signature(function)
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in given.parameters.values()]
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    command.__signature__ = inspect.Signature([*parameters, debug])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, debug]}
    return command


def _line(error: BaseException) -> tuple[str, int]:
    """What to tell of an error, and the exit code."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    if text.startswith("Caught ") and "DataLoader worker" in first:  # an error of another process ends with its message
        first = text.splitlines()[-1].partition(": ")[2]
    if isinstance(error, RunError):
        return " ".join(text.split()), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    # PyTorch's allocator on a CPU and segops' operators say it with a RuntimeError.
    words = ("can't allocate memory", "out of memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in first for word in words):
        found = f" ({first})" if first else ""
        return f"out of memory: a smaller batch, smaller images, tiles or 16 bits need less{found}", 1
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}; install it with: pip install 'segops[train]'", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", 1
    if isinstance(error, ValueError | TypeError):
        return first, 1
    return f"{type(error).__name__}: {first} (--debug shows where)", 1


def _print(message: str) -> None:
    typer.echo(f"segops: {message}", err=True)
