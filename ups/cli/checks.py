"""What checks found, as lines of a shell: a heading for each group, a mark for each check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ups.validate.check import Status

MARKS: dict[Status, tuple[str, str]] = {  # with its colour
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "skip": ("–", "dim"),
    "fault": ("✗", "bold red"),
}


class Shown(Protocol):
    """What is printed of a check; its text has one line."""

    @property
    def group(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> Status: ...
    @property
    def text(self) -> str: ...


def print_checks(checks: Sequence[Shown]) -> None:
    """Print a heading for each group, and a line for each of its checks."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(len(check.name) for check in checks)
    console = Console(highlight=False)
    for group, of_group in groupby(checks, key=lambda check: check.group):
        console.print(Text(group, style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        for check in of_group:
            mark, colour = MARKS[check.status]
            if console.is_terminal:
                mark_text = Text(f"  {mark}", style=colour)
                table.add_row(mark_text, Text(check.name), Text(check.text))
            else:  # in a pipe a line stays a line, however long
                print(f"  {mark} {check.name:<{width}} {check.text}")
        if console.is_terminal:
            console.print(table)


def count_in_words(checks: Iterable[Shown]) -> tuple[str, str, str]:
    """`1 fault`, `2 warnings`, `3 not checked`."""
    found = [check.status for check in checks]
    faults, warnings = found.count("fault"), found.count("warn")
    return (
        f"{faults} {'fault' if faults == 1 else 'faults'}",
        f"{warnings} {'warning' if warnings == 1 else 'warnings'}",
        f"{found.count('skip')} not checked",
    )
