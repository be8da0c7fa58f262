"""Let a loop finish its step before a signal ends it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DeferredSignals:
    """While it is open, SIGTERM and SIGINT only set `pending`; at its end they are delivered.

    The step that runs is finished, and what it leaves can be saved. A second signal is delivered
    at once. Outside the main thread, where no signal arrives, nothing is done.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        if self.pending is not None:
            signal.raise_signal(self.pending)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.pending is not None:
            self.pending = None
            self._restore()
            signal.raise_signal(number)
        self.pending = number

    def _restore(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)
