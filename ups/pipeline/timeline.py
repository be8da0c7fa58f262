"""The phases of a run of this process: when each began, and when it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ups.background import Background
from ups.runs.breakdown import Span


class Timeline:
    """Notes phases of this process, which may go on beside one another."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note a phase by what happens inside; it failed if that raises."""
        now, state = time.time(), "Failed"
        with self._lock:
            place = len(self._spans)
            self._spans.append(Span(phase=name, name=name, start=now, end=now, state="Running"))
        try:
            yield
            state = "Completed"
        finally:
            ended = {"end": time.time(), "state": state}
            self._spans[place] = self._spans[place].model_copy(update=ended)

    def follow(self, name: str, wait: Callable[[], object]) -> None:
        """Note a phase that goes on elsewhere, until this call returns or raises."""

        def watch() -> None:
            with self.phase(name):
                wait()

        Background(watch, f"note {name}")

    @property
    def spans(self) -> list[Span]:
        """In order of their start; a phase that goes on ends now."""
        now = {"end": time.time()}
        return [
            span.model_copy(update=now) if span.state == "Running" else span
            for span in sorted(self._spans, key=lambda span: span.start)
        ]
