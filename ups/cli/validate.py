"""`ups validate CONFIG`: would this config run here, and what is its startup going to take.

Exit code 0: valid, perhaps with warnings; 1: at least one fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

from ups.cli.console import errors_shown, print_json, quiet
from ups.cli.options import parse_settings
from ups.config import find_config, load_config
from ups.errors import ConfigError

if TYPE_CHECKING:
    from ups.validate.check import Report, Status

MARKS: dict[Status, tuple[str, str]] = {  # with its colour
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "skip": ("–", "dim"),
    "fault": ("✗", "bold red"),
}


def show_validation(
    config: str, settings: list[str] | None, *, as_json: bool, **options: Any
) -> None:
    """Print all checks of a config; exit code 1 where one of them is a fault.

    Args:
        settings: `KEY=VALUE` each.
        options: of `ups.validate.run.validate`.
    """
    with errors_shown(), quiet():
        report = _report(config, parse_settings(settings), **options)
    if as_json:
        tree = {"valid": report.is_valid, **report.model_dump(mode="json")}
        print_json(tree)
    else:
        _show(report)
    if not report.is_valid:
        raise typer.Exit(1)


def _report(config: str, settings: Mapping[str, Any], **options: Any) -> Report:
    from ups.validate import run

    try:
        path = find_config(config)
        loaded = load_config(path, settings)
    except ConfigError as error:
        return run.invalid_config(config, error)
    return run.validate(loaded, path.name, **options)


def _show(report: Report) -> None:
    """Print a heading for each group, a line for each of its checks, and the verdict."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(len(check.name) for check in report.checks)
    console = Console(highlight=False)
    for group, checks in groupby(report.checks, key=lambda check: check.group):
        console.print(Text(group, style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        for check in checks:
            mark, colour = MARKS[check.status]
            if console.is_terminal:
                mark_text = Text(f"  {mark}", style=colour)
                table.add_row(mark_text, Text(check.name), Text(check.text))
            else:  # in a pipe a line stays a line, however long
                print(f"  {mark} {check.name:<{width}} {check.text}")
        if console.is_terminal:
            console.print(table)
    counts = {status: sum(c.status == status for c in report.checks) for status in MARKS}
    noun = "fault" if counts["fault"] == 1 else "faults"
    verdict = "valid" if report.is_valid else f"not valid, {counts['fault']} {noun}"
    warnings = f"{counts['warn']} warning{'' if counts['warn'] == 1 else 's'}"
    typer.echo(f"\n{report.config}: {verdict}; {warnings}, {counts['skip']} not checked")
