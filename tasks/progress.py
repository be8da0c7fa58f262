"""A progress artifact that never holds up the work it shows."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from typing import Any, Self

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.artifacts import find_artifact

log = logging.getLogger(__name__)

UPDATE_EVERY_S = 1.0


class ProgressArtifact:
    """How far a transfer has got, in the UI; a thread updates it about once a second.

    Nothing is created where nothing was moved; `discard` says so.
    """

    def __init__(self, key: str, what: str) -> None:
        self._key, self._what = key, what
        self._done = self._total = 0
        self._started_at = time.monotonic()
        self._ended_at: float | None = None
        self._finished = threading.Event()
        context = contextvars.copy_context()  # names the run that the artifact belongs to
        self._thread = threading.Thread(
            target=context.run, args=(self._report,), daemon=True, name=key
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._finished.set()

    def update(self, done: int, total: int) -> None:
        """Take bytes done and in all, from any thread."""
        self._done, self._total = done, total
        if done == total:
            self._ended_at = time.monotonic()

    def discard(self) -> None:
        """Create nothing, or no longer update what was created."""
        self._total = 0

    def _report(self) -> None:
        artifact = None
        is_over = False
        while not is_over:
            is_over = self._finished.wait(UPDATE_EVERY_S)
            if not self._total:
                continue
            percent = 100 * self._done / self._total
            seconds = max((self._ended_at or time.monotonic()) - self._started_at, 1e-3)
            text = (
                f"{self._what}: {self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, "
                f"{self._done / 1e6 / seconds:,.0f} MB/s"
            )
            try:
                artifact = artifact or find_artifact(self._key)
                if artifact is None:
                    artifact = create_progress_artifact(percent, key=self._key, description=text)
                else:
                    update_progress_artifact(artifact, percent, description=text)
            except Exception as error:  # noqa: BLE001 (the transfer matters more than its picture)
                log.warning("no progress artifact for the %s: %s", self._what, error)
                return
