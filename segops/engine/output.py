"""The directory that a run writes to: checked before the work starts, and never left with half a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

_NEEDED = 32 << 20  # bytes; the demo's files take about one


class RunError(Exception):
    """A run that ends early for a reason its user can act on; the message is one line.

    Attributes:
        exit_code: what a command that stops for this returns.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OutputDirectory:
    """Writes the named files of a run, each whole or not at all.

    Args:
        path: created with its parents if it does not exist.
        names: the files that the run is going to write.

    Raises:
        RunError: `path` cannot be created or written to, or has too little free space.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, tuple(names)
        self.written: list[str] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Permission bits do not tell whether a directory can be written to (root, read-only mounts); writing does.
            with tempfile.TemporaryFile(dir=path):
                pass
            free = shutil.disk_usage(path).free
        except OSError as error:
            raise RunError(f"cannot write to the output directory {path}: {_reason(error)}") from error
        if free < _NEEDED:
            raise RunError(
                f"too little disk space in {path}: {free / 2**20:.1f} MiB are free, {_NEEDED >> 20} MiB are needed"
            )

    def write(self, name: str, content: bytes) -> None:
        """Write one of the named files; raises RunError if that is impossible, with the old file still in place."""
        target = self.path / name
        partial = self.path / f".{name}.{os.getpid()}"  # beside its target: os.replace does not cross file systems
        try:
            partial.write_bytes(content)
            os.replace(partial, target)
        except OSError as error:
            raise RunError(f"cannot write {target}: {_reason(error)}; {self.report()}") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        self.written.append(name)

    def report(self) -> str:
        """What has been written and what has not, for messages."""
        missing = [name for name in self.names if name not in self.written]
        return f"written to {self.path}: {_listed(self.written)}; not written: {_listed(missing)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
