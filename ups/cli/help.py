"""The help of a command: its example comes first, on a line that can be copied."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand


class ExampleFirst(TyperCommand):
    """A command whose help shows the epilog, its example, before it explains anything."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        if self.epilog:
            lines = inspect.cleandoc(self.epilog).splitlines()
            formatter.write_paragraph()
            formatter.write("".join(f"  {line}\n" for line in lines))  # not cut into two lines
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)


def show_examples_first(app: typer.Typer) -> None:
    """Have the help of all commands of an app, and of those below it, begin with their examples."""
    for command in app.registered_commands:
        command.cls = ExampleFirst
    for group in app.registered_groups:
        if group.typer_instance is not None:
            show_examples_first(group.typer_instance)
