"""What of the latents is there, while training already reads the first of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ups.data.sources import Staged, is_untouched
from ups.trace import noted

WATCH_S = 0.05  # between two looks whether the run is stopped


class Arrival:
    """Trajectories of train as they come, and the end of it all. Safe to share between threads.

    Args:
        sources: what they are read of.
    Attributes:
        waited_s: how long `wait_for` has waited.
        first_wait: begin and end of the first time that it did, Unix times; None before.
    """

    def __init__(self, num_train: int, sources: Sequence[Staged] = ()) -> None:
        self._sources = sources
        self._is_there = np.zeros(num_train, np.bool_)
        self._changed = threading.Condition()
        self._is_settled, self._error = False, None  # type: bool, BaseException | None
        self.waited_s = 0.0
        self.first_wait: tuple[float, float] | None = None

    def note(self, first: int, end: int) -> None:
        """Trajectories [first, end) of train are there."""
        with self._changed:
            self._is_there[first:end] = True
            self._changed.notify_all()

    @property
    def is_settled(self) -> bool:
        """Whether all of it is there, and is what it should be."""
        return self._is_settled

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has written to the files that are there, as far as `stat` tells."""
        return all(map(is_untouched, self._sources))

    def settle(self) -> None:
        """All of train and val is there, and was found to be what it should be."""
        with self._changed:
            self._is_settled = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Nothing more comes; whoever waits gets this error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def stops(self, is_stopped: bool) -> bool:
        """Whether a wait that came to nothing was the last one.

        Args:
            is_stopped: whether this process was asked to stop.
        """
        return is_stopped

    def wait_for(self, rows: NDArray[np.int64], is_stopped: Callable[[], bool]) -> bool:
        """Wait for these trajectories of train; whether they are there, not stopped before.

        Raises: what the arrival has failed with.
        """
        return self._wait(lambda: bool(self._is_there[rows].all()), is_stopped, "wait for rows")

    def wait_settled(self, is_stopped: Callable[[], bool]) -> bool:
        """Wait for the end of it all; whether it has come, not a stop before.

        Raises: what the arrival has failed with.
        """
        return self._wait(lambda: self._is_settled, is_stopped, "wait for the verdict on the data")

    def _wait(self, is_done: Callable[[], bool], is_stopped: Callable[[], bool], what: str) -> bool:
        with self._changed:
            if self._error is None and is_done():
                return True
            began, began_at = time.monotonic(), time.time()
            try:
                with noted(what):
                    while self._error is None and not is_done():
                        if is_stopped():
                            return False
                        self._changed.wait(WATCH_S)
            finally:
                self.waited_s += time.monotonic() - began
                self.first_wait = self.first_wait or (began_at, time.time())
            self.check()
            return True

    def check(self) -> None:
        """Raise what the arrival has failed with, if it has."""
        if self._error is not None:
            raise self._error
