"""A progress artifact that never holds up the work it shows."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.artifacts import create_progress_artifact, update_progress_artifact

log = logging.getLogger(__name__)

UPDATE_EVERY_S = 1.0


@contextmanager
def progress_artifact(key: str, what: str) -> Iterator[Progress]:
    """Its `update` takes bytes done and in all; a thread tells the API about once a second.

    Nothing is created where nothing was moved; `forget` says so.
    """
    state = Progress(key, what)
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(state.report,), daemon=True, name=key)
    thread.start()
    try:
        yield state
    finally:
        state.finished.set()


class Progress:
    def __init__(self, key: str, what: str) -> None:
        self.key, self.what = key, what
        self.done = self.total = 0
        self.started = time.monotonic()
        self.ended: float | None = None
        self.finished = threading.Event()

    def update(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if done == total:
            self.ended = time.monotonic()

    def forget(self) -> None:
        self.total = 0

    def report(self) -> None:
        artifact = None
        over = False
        while not over:
            over = self.finished.wait(UPDATE_EVERY_S)
            if not self.total:
                continue
            percent = 100 * self.done / self.total
            seconds = max((self.ended or time.monotonic()) - self.started, 1e-3)
            text = (
                f"{self.what}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, "
                f"{self.done / 1e6 / seconds:,.0f} MB/s"
            )
            try:
                if artifact is None:
                    artifact = create_progress_artifact(percent, key=self.key, description=text)
                else:
                    update_progress_artifact(artifact, percent, description=text)
            except Exception as error:  # noqa: BLE001 (the transfer matters more than its picture)
                log.warning("no progress artifact for the %s: %s", self.what, error)
                return
