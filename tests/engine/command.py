"""The command line, called inside the test's process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from segops.cli import app

Result = Any  # of CliRunner.invoke


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def assert_stopped(result: Result, exit_code: int, *parts: str) -> None:
    """The command ended with this exit code and one line on the error stream, no traceback."""
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("segops: ")
    for part in parts:
        assert part in lines[0]
