"""What the ranks of a run on this machine say, as the process that started them hears it."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from multiprocessing.connection import Connection, Listener
from typing import Any

from ups.background import Background
from ups.errors import Interrupted, RankError, UpsError
from ups.pipeline.rank import Word

LAST_WORDS_S = 5  # that what a rank has sent may take to be read
ENDS = ("result", "stopped", "failed")


class Exchange:
    """Where the ranks of this machine say how it goes: a socket without a file."""

    def __init__(self, key: bytes) -> None:
        self.address = f"\0ups-ranks-{os.getpid()}-{secrets.token_hex(4)}"
        self._listener = Listener(self.address, "AF_UNIX", authkey=key)
        self._words: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._readers: list[Background[None]] = []

    def __enter__(self) -> Exchange:
        self._accepting = Background(self._accept, "listen to the ranks")
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def words(self, wait_s: float) -> Iterator[Word]:
        """What was said; waits so long for the first. Without a wait, all that will be."""
        if wait_s == 0:
            for reader in self._readers:
                reader.is_done(LAST_WORDS_S)
        with suppress(queue.Empty):
            if wait_s:
                yield self._words.get(timeout=wait_s)
            while True:
                yield self._words.get_nowait()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (EOFError, ConnectionError):  # a rank has ended as it began to speak
                continue
            except OSError:  # it is closed
                return
            self._readers.append(
                Background(lambda c=connection: self._read(c), "listen to a rank")  # type: ignore[misc]
            )

    def _read(self, connection: Connection) -> None:
        word: Word | None = None
        with suppress(EOFError, OSError):  # it has ended
            while True:
                word = connection.recv()
                self._words.put(word)
        if word is not None:
            self._words.put(Word(word.rank, "gone", None))


class Said:
    """What the ranks have said so far; passes on what others want to know.

    Args:
        hear: word → called with the rank that says it, and with what it says.
    Attributes:
        pids: rank → its process, of those that have started.
        started: Unix times at which they were.
        results: rank → what it came to.
        ended: ranks that have said how they ended.
        has_lost: whether one ended without saying so.
    """

    def __init__(self, num: int, hear: Mapping[str, Callable[[int, Any], None]]) -> None:
        self.pids: dict[int, int] = {}
        self.started: list[float] = []
        self.results: dict[int, Any] = {}
        self._num, self._hear = num, hear
        self._errors: list[BaseException] = []
        self.ended: set[int] = set()
        self.has_lost = False
        self._has_stopped = False

    def take(self, words: Iterator[Word]) -> None:
        """Hear these."""
        for rank, what, value in words:
            if what in ENDS:
                self.ended.add(rank)
            if what == "log":
                name, level, text = value
                logging.getLogger(name).log(level, "%s%s", f"rank {rank}: " if rank else "", text)
            elif what == "started":
                self.pids[rank], started_at = value
                self.started.append(started_at)
            elif what == "gone":
                self.has_lost |= rank not in self.ended
            elif what == "stopped":
                self._has_stopped = True
            elif what == "failed":
                self._errors.append(value)
            elif what == "result":
                self.results[rank] = value
            elif what in self._hear:
                self._hear[what](rank, value)

    @property
    def is_complete(self) -> bool:
        """Whether all have ended as they should."""
        return len(self.results) == self._num

    def require_all(self, error: BaseException | None, *, is_told: bool, stopped: str) -> None:
        """Raise what the ranks ended with, unless all came to their results.

        The cause comes before its echoes, and what a rank could not save before a stop.

        Args:
            error: what their launcher says.
            is_told: whether they were told to stop.
            stopped: what to say where they were, or one of them was by a signal of its own.
        Raises:
            Interrupted: they have stopped. Otherwise what one of them failed with.
        """
        if self.is_complete:
            return
        raised = [e for e in self._errors if not getattr(e, "is_echo", False)]
        if is_told:  # a stop breaks up what they do together
            raised = [e for e in raised if not isinstance(e, RankError)]
        silent = set(range(self._num)) - self.ended
        if silent and _was_killed(error):  # what torch says of that is an echo, too
            raised = [e for e in raised if isinstance(e, (UpsError, OSError))]
        if raised:
            raise min(raised, key=lambda e: not isinstance(e, UpsError))
        if is_told or (self._has_stopped and not silent):
            raise Interrupted(stopped)
        if self._errors and not silent:  # echoes alone
            raise self._errors[0]
        assert error is not None, "a rank that ends well says so"
        raise _explain(error, silent) from None


def _was_killed(error: BaseException | None) -> bool:
    """Whether the first rank that failed was ended by a signal."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    return isinstance(error, ChildFailedError) and error.get_first_failure()[1].exitcode < 0


def _explain(error: BaseException, silent: Set[int]) -> BaseException:
    """A rank that ended without a word, in one line.

    Args:
        silent: those that have not said how they ended.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not isinstance(error, ChildFailedError):
        return error
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        what = f"rank {min(silent, default=rank)} ended without a word"
        return RankError(f"{what}; the others were stopped. See the log, and start again")
    name = signal.Signals(-failure.exitcode).name
    remedy = "the system may have run out of memory: see dmesg, " if name == "SIGKILL" else ""
    return RankError(
        f"rank {rank} (process {failure.pid}) was ended by {name}; the others were stopped. "
        f"{remedy[:1].upper() + remedy[1:]}{'and s' if remedy else 'S'}tart again: it resumes from "
        "the last checkpoint"
    )
