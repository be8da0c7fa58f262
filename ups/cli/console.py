"""What all commands of the shell share: exit codes, errors as messages, tables, JSON."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from ups.errors import UpsError, refusals_explained
from ups.progress import say_to_person

FAILED = 1
USAGE = 2  # typer's own
CANCELLED = 3
TIMED_OUT = 124
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
TERMINATED = 143  # 128 + SIGTERM

EXIT_CODES = f"""\
Exit codes: 0 done; {FAILED} it failed, or found a fault (a damaged entry, a slower startup); \
{USAGE} the command line is wrong; {CANCELLED} the run was cancelled; \
{TIMED_OUT} --timeout is over, the run goes on; \
{INTERRUPTED} Ctrl-C; {TERMINATED} SIGTERM."""

PIPE_COLUMNS = 200
LOG_FORMAT, LOG_TIME = "%(asctime)s %(message)s", "%H:%M:%S"


def _let_go_of_unwritten_output() -> None:
    """What standard output has refused would be tried again at the exit, with lines about that."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def errors_shown() -> Iterator[None]:
    """Log to standard error; what is meant for the user ends in a message and exit code 1.

    SIGTERM unwinds as Ctrl-C does, so that a run's record says that it was stopped.
    """
    logger, handler = logging.getLogger("ups"), _StandardError()
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_TIME))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with refusals_explained():
            yield
    except UpsError as error:
        typer.echo(f"error: {error}", err=True)
        _let_go_of_unwritten_output()
        raise typer.Exit(FAILED) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that threads watch; it is set where what is inside ends by an error or Ctrl-C."""
    stop = threading.Event()
    try:
        yield stop
    except BaseException:  # Ctrl-C and an exit, too: the threads would go on
        stop.set()
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Without log lines: what they say is shown otherwise."""
    loggers = [logging.getLogger(name) for name in ("ups", "botocore")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def print_json(value: Any) -> None:
    """Standard output gets this and nothing else; what is not finite is null."""
    from pydantic_core import to_json

    typer.echo(to_json(value, indent=1, inf_nan_mode="null").decode())


def print_table(
    rows: Sequence[Mapping[str, str]], right: Sequence[str] = (), title: str | None = None
) -> None:
    """Rows with the same keys, which are the headings; whole lines where it is not a terminal.

    Args:
        right: headings of the columns that are set to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=escape(title) if title else None,
        title_justify="left",
    )
    for name in rows[0]:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name == next(iter(rows[0])),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    Console(highlight=False, width=width).print(table)


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: above the bars, where there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        say_to_person(self.format(record))


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
