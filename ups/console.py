"""What the commands of the shell share: errors as messages, progress as lines, tables."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer

from ups.errors import UpsError

PROGRESS_EVERY_S = 1.0
PIPE_COLUMNS = 200


@contextmanager
def errors_shown() -> Iterator[None]:
    """Log to standard error; what is meant for the user ends in a message and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        yield
    except UpsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def progress_line(verb: str, unit: str, scale: float = 1) -> Callable[[int, int], None]:
    """A callback (done, total) that prints a line at most once a second."""
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_EVERY_S:
            last = time.monotonic()
            print(f"  {verb} {done / scale:,.0f} of {total / scale:,.0f} {unit}", file=sys.stderr)

    return show


def print_checks(
    groups: Mapping[str, Sequence[tuple[str, str, str]]], colours: Mapping[str, str]
) -> None:
    """A heading for each group, and a line of mark, name and text for each of its checks.

    Args:
        colours: of the marks.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(len(name) for checks in groups.values() for _, name, _ in checks)
    console = Console(highlight=False)
    for title, checks in groups.items():
        console.print(Text(title, style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        for mark, name, text in checks:
            if console.is_terminal:
                table.add_row(Text(f"  {mark}", style=colours[mark]), Text(name), Text(text))
            else:  # in a pipe a line stays a line, however long
                print(f"  {mark} {name:<{width}} {text}")
        if console.is_terminal:
            console.print(table)


def print_table(rows: Sequence[Mapping[str, str]], right: Sequence[str] = ()) -> None:
    """Rows with the same keys, which are the headings; whole lines where it is not a terminal.

    Args:
        right: headings of the columns that are set to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in rows[0]:
        table.add_column(
            name, justify="right" if name in right else "left", no_wrap=name == next(iter(rows[0]))
        )
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    Console(highlight=False, width=width).print(table)
