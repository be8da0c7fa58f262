"""The bytes of an object that go from the disk again once nobody needs them.

A block goes once it is known to be right and all that is made of it is made. So the disk has room
for what is made of an object, and need not have it for the object.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

from ups.data.cuts import MIB, Interval

PIECE_BYTES = MIB  # where the manifest has no blocks
BACKLOG_BYTES = 256 * MIB
IN_FLIGHT_BYTES = 128 * MIB  # of the ranges that arrive together
_WATCH_S = 0.05


class Backlog:
    """Holds fetches back while too much has arrived that is not encoded; shared by all of a run.

    It lets them go on while somebody waits for bytes, and once all is encoded: so nobody waits
    for ever.
    """

    def __init__(self) -> None:
        self._room, self._num_waiting, self._num_needed = BACKLOG_BYTES, 0, 0
        self._changed = threading.Condition()  # guards what stands above

    def take(self, num_bytes: int) -> None:
        """So many bytes have arrived; a negative number has gone."""
        with self._changed:
            self._room -= num_bytes
            self._changed.notify_all()

    def expect(self, num: int) -> None:
        """So many more pieces are to be encoded; a negative number has been so."""
        with self._changed:
            self._num_needed += num
            self._changed.notify_all()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Let fetches go on: somebody waits for bytes."""
        with self._changed:
            self._num_waiting += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._num_waiting -= 1

    def hold_back(self, halt: threading.Event) -> None:
        """Return when a fetch may go on, or is halted."""
        with self._changed:
            while self._room < 0 < self._num_needed and not self._num_waiting:
                if halt.is_set():
                    return
                self._changed.wait(_WATCH_S)


class LettingGo:
    """Counts for each block of an object who still needs it; safe to share between threads.

    Args:
        total: the bytes of the object.
        block_bytes: of a block; None where the manifest has no digests of blocks: then it goes
            no earlier than `matched_all` says.
        kept: bytes that are needed up to the end.
        needed: bytes until each of them is `done`.
    Attributes:
        free: called with the start and the length of each block that may go, once.
    """

    def __init__(
        self,
        total: int,
        block_bytes: int | None,
        kept: Iterable[Interval],
        needed: Iterable[Interval],
        backlog: Backlog,
    ) -> None:
        self.total, self.backlog = total, backlog
        self._has_digests, self._size = block_bytes is not None, block_bytes or PIECE_BYTES
        self.free: Callable[[int, int], None] = lambda _start, _length: None
        self._lock = threading.Lock()
        self._waits_for = [1] * -(-total // self._size)  # to be known to be right
        self._kept = {index for start, end in kept for index in self._blocks(start, end)}
        for index in self._kept:
            self._waits_for[index] += 1
        places = list(needed)
        for start, end in places:
            for index in self._blocks(start, end):
                self._waits_for[index] += 1
        backlog.expect(len(places))

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay up to the end."""
        return sum(self._length(index) for index in self._kept)

    @property
    def most_bytes(self) -> int:
        """That the disk needs room for."""
        if not self._has_digests:
            return self.total
        return min(self.total, self.kept_bytes + BACKLOG_BYTES + IN_FLIGHT_BYTES)

    def is_block(self, start: int, length: int) -> bool:
        """Whether these bytes are a block that need not be there in the end."""
        index, offset = divmod(start, self._size)
        is_one = self._has_digests and offset == 0 and length == self._length(index)
        return is_one and index not in self._kept

    def whole_blocks(self, start: int, end: int) -> Interval:
        """From the start of the first to the end of the last block of [start, end)."""
        return start - start % self._size, min(-(-end // self._size) * self._size, self.total)

    def came(self, num_bytes: int) -> None:
        """So many bytes are on the disk, or with a negative number gone: of those that go early."""
        if self._has_digests:
            self.backlog.take(num_bytes)

    def matched(self, index: int) -> None:
        """The block is known to be right."""
        self._less(range(index, index + 1))

    def matched_all(self) -> None:
        """All is known to be right, which no digests of blocks have said before."""
        if not self._has_digests:
            self._less(range(len(self._waits_for)))

    def done(self, start: int, end: int) -> None:
        """What is made of these bytes is made."""
        self._less(self._blocks(start, end))
        self.backlog.expect(-1)

    def _less(self, blocks: range) -> None:
        with self._lock:
            for index in blocks:
                self._waits_for[index] -= 1
            free = [index for index in blocks if self._waits_for[index] == 0]
        for index in free:
            self.free(index * self._size, self._length(index))

    def _blocks(self, start: int, end: int) -> range:
        return range(start // self._size, -(-end // self._size))

    def _length(self, index: int) -> int:
        return min(self._size, self.total - index * self._size)
