"""Which process it is, since numbers come round again, and signals that wait for its work."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

STATE_FIELD, START_FIELD = 0, 19  # of /proc/PID/stat, behind the name; clock ticks since the boot
SAME_S = 2.0  # Unix times move when the clock is set
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def process_started_at(pid: int | None = None) -> float:
    """Unix time in seconds, to a hundredth, at which this process, or another, was started.

    psutil's `create_time` adds the boot time, which the kernel gives in whole seconds.

    Raises:
        OSError: there is no such process.
    """
    return _started_at(_stat(pid))


def is_running(pid: int, started_at: float) -> bool:
    """Whether the process of this number goes on, and is the one that started then."""
    try:
        stat = _stat(pid)
    except OSError:
        return False
    return stat[STATE_FIELD] != "Z" and abs(_started_at(stat) - started_at) < SAME_S  # Z: ended


def _started_at(stat: list[str]) -> float:
    started_s = int(stat[START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def _stat(pid: int | None) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold spaces."""
    return Path(f"/proc/{pid or 'self'}/stat").read_text().rpartition(")")[2].split()


class DeferredSignals:
    """While it is open, SIGTERM and SIGINT only set `pending`; at its end they are delivered.

    The step that runs is finished, and what it leaves can be saved. A second signal is delivered
    at once. Outside the main thread, where no signal arrives, nothing is done.

    Args:
        patient: a second signal says the same as the first, as where a launcher passes it on to
            processes that a terminal has sent it to, too.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.pending: int | None = None
        self._patient = patient
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self.pending is not None:
            signal.raise_signal(self.pending)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.pending is not None and not self._patient:
            self.pending = None
            self._restore()
            signal.raise_signal(number)
        self.pending = number

    def _restore(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)
