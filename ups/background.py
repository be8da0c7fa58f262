"""A call in a thread that may be abandoned: it never holds up the interpreter's exit."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from ups.errors import Interrupted

WATCH_S = 0.05
T = TypeVar("T")
Item = TypeVar("Item")


class Background(Generic[T]):
    """Starts the call at once; what it returns or raises waits in `result`.

    It runs in the context of whoever started it, so that its log lines go to the same run.
    """

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._outcome: Future[T] = Future()
        work = contextvars.copy_context().run
        threading.Thread(target=work, args=(self._work, call), name=name, daemon=True).start()

    def is_done(self, timeout_s: float) -> bool:
        """Whether it ended within this time."""
        return bool(wait([self._outcome], timeout_s).done)

    def result(self) -> T:
        """What the call returned, once it has; raises what it raised."""
        return self._outcome.result()

    def result_unless(self, stop: threading.Event | None, what: str) -> T:
        """What the call returned; whoever sets `stop` need not wait for it.

        Args:
            what: this waits for, such as `the object store`.
        Raises:
            Interrupted: `stop` was set first; what the call raised.
        """
        while not self.is_done(WATCH_S):
            if stop is not None and stop.is_set():
                raise Interrupted(f"stopped while waiting for {what}")
        return self.result()

    def error(self) -> BaseException | None:
        """What the call raised, once it has ended; None where it returned."""
        return self._outcome.exception()

    def _work(self, call: Callable[[], T]) -> None:
        try:
            self._outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001, raised again by `result`
            self._outcome.set_exception(error)


def in_context(call: Callable[[Item], T]) -> Callable[[Item], T]:
    """The call as a pool's threads make it, in the context of whoever asks for this."""
    context = contextvars.copy_context()
    return lambda item: context.copy().run(call, item)


def at_once(
    call: Callable[[Item], T],
    items: Sequence[Item],
    most: int,
    stop: threading.Event | None,
    what: str,
) -> list[T]:
    """What the call returns for each item, in their order; `most` of them are under way at a time.

    Args:
        what: this waits for, such as `the object store`.
    Raises:
        Interrupted: `stop` was set first; what a call raised, after which no other is begun.
    """
    todo, lock, found = iter(enumerate(items)), threading.Lock(), {}

    def work() -> None:
        while stop is None or not stop.is_set():
            with lock:
                place, item = next(todo, (None, None))
            if place is None:
                return
            try:
                found[place] = call(item)  # type: ignore[arg-type]  # None is an item, too
            except BaseException:  # whatever it is, no other item is begun; raised again below
                with lock:
                    list(todo)
                raise

    for each in [Background(work, what) for _ in range(min(most, len(items)))]:
        each.result_unless(stop, what)
    if len(found) < len(items):
        raise Interrupted(f"stopped while waiting for {what}")
    return [found[place] for place in range(len(items))]
