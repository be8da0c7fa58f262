"""The phases of a run in this process, as they happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ups.telemetry.phases import Span


class Timeline:
    """Phases one after the other."""

    def __init__(self) -> None:
        self._done: list[Span] = []
        self._current: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside; it failed if it raises."""
        self._current, state = (name, time.time()), "Failed"
        try:
            yield
            state = "Completed"
        finally:
            self._done.append(self._ending_now(state))
            self._current = None

    @property
    def spans(self) -> list[Span]:
        """In order of their start; a phase that goes on ends now."""
        return [*self._done, *([self._ending_now("Running")] if self._current else [])]

    def _ending_now(self, state: str) -> Span:
        assert self._current is not None, "no phase goes on"
        name, start = self._current
        return Span(phase=name, name=name, start=start, end=time.time(), state=state)
