"""What the threads of a run do and when, noted as it happens for the trace in its folder.

A run opens its `Trace`. Whoever works for it notes stretches there without being handed anything:
threads of ours run in the context of whoever started them. Where no trace is open nothing is noted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_STRETCHES = 50_000  # what comes after them is left out: it is some 10 MB then
MOST_STEPS = 20_000


class Thread(NamedTuple):
    """A thread: its number, which another one may have once it has ended, and its name."""

    number: int
    name: str


class Stretch(NamedTuple):
    """Something that a thread did. Times are Unix times in seconds."""

    name: str
    thread: Thread
    start: float
    end: float
    facts: dict[str, Any]


@dataclass(slots=True)
class Steps:
    """The steps of the epoch that may wait for its trajectories.

    Attributes:
        rows_M: the trajectories of train that the epoch takes, in their order.
        first: the place in it of what the first of these steps takes.
        num_each: of them that a step takes.
        began_at: of each step, as it was given to the device.
    """

    thread: Thread
    rows_M: NDArray[np.int64]
    first: int
    num_each: int
    began_at: list[float] = field(default_factory=list)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The trajectories that a step takes, counted from the first."""
        place = self.first + step * self.num_each
        return self.rows_M[place : place + self.num_each]


@dataclass(slots=True)
class Trace:
    """What has been noted so far. Threads add to it without a lock: an append is one operation.

    Attributes:
        num_left_out: stretches beyond MOST_STRETCHES.
    """

    stretches: list[Stretch] = field(default_factory=list)
    steps: Steps | None = None
    num_left_out: int = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """What is noted inside, here and in threads that are started inside, is noted in it."""
        token = _opened.set(self)
        try:
            yield
        finally:
            _opened.reset(token)

    def add(self, name: str, start: float, end: float, facts: dict[str, Any]) -> None:
        """Note a stretch of the calling thread."""
        if len(self.stretches) < MOST_STRETCHES:
            self.stretches.append(Stretch(name, this_thread(), start, end, facts))
        else:
            self.num_left_out += 1


_opened: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextmanager
def noted(name: str, **facts: Any) -> Iterator[None]:
    """Note what happens inside, and where that raises, with what."""
    trace, start = _opened.get(), time.time()
    try:
        yield
    except BaseException as error:  # a stop, too; raised again
        facts["error"] = type(error).__name__
        raise
    finally:
        if trace is not None:
            trace.add(name, start, time.time(), facts)


def note_stretch(name: str, start: float, end: float, **facts: Any) -> None:
    """Note a stretch of the calling thread that is over."""
    if (trace := _opened.get()) is not None:
        trace.add(name, start, end, facts)


def note_all_of(trace: Trace) -> None:
    """Add what was noted in another process that works for the run."""
    if (own := _opened.get()) is not None:
        own.stretches += trace.stretches[: MOST_STRETCHES - len(own.stretches)]
        own.steps = trace.steps or own.steps


def note_steps(rows_M: NDArray[np.int64], first: int, num_each: int) -> Steps:
    """Begin to note the steps of an epoch; nobody sees them where no trace is open."""
    steps = Steps(this_thread(), rows_M, first, num_each)
    if (trace := _opened.get()) is not None:
        trace.steps = steps
    return steps


def this_thread() -> Thread:
    return Thread(threading.get_native_id(), threading.current_thread().name)
