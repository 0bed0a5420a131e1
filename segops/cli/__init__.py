"""The `segops` command: one module a subcommand."""

from __future__ import annotations

import sys

try:
    import typer
    from rich.console import Console  # noqa: F401  (typer does without, the subcommands do not)
except ModuleNotFoundError as error:
    # This package is imported only to run the command, whose user wants a line to act on rather than a traceback.
    sys.exit(f"segops: the command line needs {error.name}; install it with: pip install 'segops[demo]'")

from segops.cli import bench, demo, evaluate, info, models, predict, train
from segops.cli.errors import Commands, reported

app = typer.Typer(
    name="segops",
    help="Hand-written kernels for image segmentation as PyTorch operators. `segops COMMAND --help` tells more.",
    cls=Commands,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (demo.demo, train.train, evaluate.evaluate, predict.predict, models.models, bench.bench, info.info):
    app.command()(reported(_command))


def main() -> None:
    """Entry point of the `segops` command."""
    app(prog_name="segops")


if __name__ == "__main__":
    main()
