"""How far long work has got: bars on a terminal, sparse lines anywhere else."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Takes how much is done and how much there is, from any thread."""

EVERY_S = 10.0  # between two lines; UPS_PROGRESS_S overrides
SHARE = 0.1  # of the whole from line to line …
SILENCE_S = 60.0  # … or so long without one
PACE_S = 0.1
BARS_AFTER_S = 0.5  # what is over sooner needs no bar, and no import of rich


class Show(Protocol):
    def __call__(self, what: str, unit: str, scale: float = 1) -> Progress:
        """A callback for one piece of work, such as `encoded`, `trajectories`.

        Args:
            scale: counts of a unit, 1e6 for bytes shown in MB.
        """


@contextmanager
def progress_shown() -> Iterator[Show]:
    """On standard error: bars on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield partial(sparse_lines, lambda line: say_to_person(f"  {line}"))
        return
    bars = _Bars()
    try:
        yield bars.show
    finally:
        bars.close()


def say_to_person(line: str) -> None:
    """A line on standard error; where nobody reads it any more, the work goes on."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def logged(what: str, unit: str, scale: float = 1) -> Progress:
    """Lines in the log, from any thread with the context of the caller."""
    context = contextvars.copy_context()
    return sparse_lines(lambda line: context.copy().run(log.info, "%s", line), what, unit, scale)


def sparse_lines(
    say: Callable[[str], None],
    what: str,
    unit: str,
    scale: float = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """A callback that says a line for another 10 % and for the end, at most every 10 s.

    Slow work says one every minute. What is done before the first of them says nothing.
    """
    every_s = float(os.environ.get("UPS_PROGRESS_S") or EVERY_S)
    lock = threading.Lock()
    said_at, said_share = clock(), 0.0

    def show(done: int, total: int) -> None:
        nonlocal said_at, said_share
        if clock() - said_at < every_s or total <= 0:
            return
        with lock:
            now, share = clock(), done / total
            is_end = done >= total and said_share < 1
            is_due = share - said_share >= SHARE or now - said_at >= SILENCE_S or is_end
            if now - said_at < every_s or not is_due:
                return
            said_at, said_share = now, share
        say(f"{what} {done / scale:,.0f} of {total / scale:,.0f} {unit} ({share:.0%})")

    return show


class Paced:
    """Calls a callback, where there is one, at most 10 times a second, and for the end."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._told_at = 0.0

    def __call__(self, done: int) -> None:
        if self._progress is not None and time.monotonic() - self._told_at >= PACE_S:
            self._told_at = time.monotonic()
            self._progress(done, self._total)

    def end(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)


class _Bars:
    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._bars: RichProgress | None = None

    def show(self, what: str, unit: str, scale: float = 1) -> Progress:
        task: TaskID | None = None

        def update(done: int, total: int) -> None:
            nonlocal task
            if time.monotonic() - self._began < BARS_AFTER_S:
                return
            with self._lock:
                bars = self._bars = self._bars or _start_bars()
                if task is None:
                    task = bars.add_task(what, total=total / scale, unit=unit)
                bars.update(task, completed=done / scale, total=total / scale)

        return update

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def _start_bars() -> RichProgress:
    from rich import progress
    from rich.console import Console

    bars = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # else it is for a program or a file
    )
    bars.start()
    return bars
