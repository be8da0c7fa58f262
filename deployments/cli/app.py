"""The console script `ups`: the stack of this machine, runs on it, and the library's commands.

Whatever is slow to import is imported in the command that needs it: `ups --help` is instant.
"""

from __future__ import annotations

import os

import typer

from deployments.cli import runs, stack, sweep
from ups.cli.app import app as ups_app
from ups.cli.console import EXIT_CODES
from ups.machine.openmp import bound_spinning

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train neural PDE simulators on Prefect, on this machine's stack or without Prefect.",
    epilog=EXIT_CODES,
)
app.add_typer(stack.app)
app.add_typer(runs.app)
app.add_typer(sweep.app)
app.add_typer(ups_app)


@app.callback()
def _before_any_command() -> None:
    bound_spinning(os.environ)  # before a command imports torch


if __name__ == "__main__":
    app()
