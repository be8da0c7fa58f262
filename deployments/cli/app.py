"""The console script `ups`: the stack of this machine, runs on it, and the library's commands.

Whatever is slow to import is imported in the command that needs it: `ups --help` is instant.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deployments.cli import clean, deploy, doctor, runs, stack, sweep, worker
from ups import __version__
from ups.cli.app import app as ups_app
from ups.cli.console import EXIT_CODES
from ups.cli.help import show_examples_first
from ups.cli.places import say_other_clone
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
app.add_typer(deploy.app)
app.add_typer(worker.app)
app.add_typer(doctor.app)
app.add_typer(clean.app)
app.add_typer(runs.app)
app.add_typer(sweep.app)
app.add_typer(ups_app)
show_examples_first(app)


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"ups-train {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Say the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    say_other_clone()
    bound_spinning(os.environ)  # before a command imports torch


if __name__ == "__main__":
    app()
