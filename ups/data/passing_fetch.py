"""A download of which no more is kept on the disk than somebody still needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ups.data.cuts import Want, holds, stretches
from ups.data.fetch_journal import AGAIN, GONE, line
from ups.data.letting_go import LettingGo
from ups.data.objectstore import ObjectInfo, ObjectStore
from ups.data.ranges import CHUNK_BYTES, RANGE_BYTES, RangedFetch
from ups.files import punch_hole

log = logging.getLogger(__name__)


class PassingFetch(RangedFetch):
    """A `RangedFetch` whose bytes may pass: they arrive, are read, and are let go.

    Args:
        letting_go: says what is needed; None: all.
    """

    def __init__(
        self,
        store: ObjectStore,
        info: ObjectInfo,
        dest: Path,
        num_threads: int,
        wants: Sequence[Want] = (),
        letting_go: LettingGo | None = None,
    ) -> None:
        passes = letting_go is not None
        super().__init__(store, info, dest, num_threads, RANGE_BYTES, wants=wants, by_blocks=passes)
        self.journal.lets_go = passes
        self._letting_go, self._makes_holes = letting_go, True
        self._skipped: dict[int, int] = {}  # start → length of blocks that are let go already
        if letting_go is not None:
            letting_go.free = self._free
            if self.check is not None:
                self.check.matched = letting_go.matched

    def skip_gone(self) -> None:
        """Do not fetch again what an earlier process let go, unless somebody waits for it.

        What was made of it is there, as far as is known. To be called before it is `opened`.
        """
        if self._letting_go is None or self.check is None:
            return
        is_block = self._letting_go.is_block
        self._skipped = {at: n for at, n in self.were_gone.items() if is_block(at, n)}
        self.journal.gone = dict(self._skipped)
        self.check.expect(-len(self._skipped))
        for index in self._ranges_of(self._skipped):
            self.filled[index] = self.length(index)
        self.resumed_bytes = self.num_arrived = sum(self.filled)

    def wait(self, start: int, end: int) -> None:
        """As `RangedFetch.wait`; what was let go comes again."""
        if self._letting_go is None:
            super().wait(start, end)
            return
        for index in self._take_back(self._letting_go, start, end):
            self.fetch(index, memoryview(bytearray(CHUNK_BYTES)))
        with self._letting_go.backlog.awaited():
            super().wait(start, end)

    def hold_back(self) -> None:
        if self._letting_go is not None:
            self._letting_go.backlog.hold_back(self.halt)

    def _open_file(self) -> None:
        if self._letting_go is None:
            super()._open_file()
        else:
            self.file.require_room(self._letting_go.most_bytes, self.info.uri)
            self.file.open(whole=False)
            self._letting_go.came(self.num_arrived - sum(self._skipped.values()))

    def _note(self, index: int, filled: int, num_new: int) -> None:
        super()._note(index, filled, num_new)
        if self._letting_go is not None:
            self._letting_go.came(num_new)

    def _free(self, start: int, length: int) -> None:
        """Give bytes back to the disk. It is noted first: no hole may be taken for them."""
        assert self._letting_go is not None, "it is what calls this"
        self._letting_go.came(-length)
        with self.changed:
            if self.halt.is_set() or not self._makes_holes:  # the files may be closed
                return
            self.journal.gone[start] = length
            self.file.append(self.journal_fd, line(start, length, GONE))
            self._makes_holes = punch_hole(self.fd, start, length)
        if not self._makes_holes:
            log.info("%s: no holes on this file system: its bytes stay to the end", self.partial)

    def _take_back(self, letting_go: LettingGo, start: int, end: int) -> list[int]:
        """The ranges of blocks that were let go, and are needed after all: they are missing now."""
        start, end = letting_go.whole_blocks(start, end)
        with self.changed:
            gone = {at: n for at, n in self._skipped.items() if start <= at < end}
            if not gone or self.check is None:
                return []
            self.raise_if_over(None)  # the files may be closed
            self.file.append(self.journal_fd, line(start, end - start, AGAIN))
            for at in gone:
                del self.journal.gone[at], self._skipped[at]
            again = self._ranges_of(gone)
            for index in again:
                self.filled[index] = 0
            self.check.expect(len(gone))
            num_bytes = sum(gone.values())
            self.num_arrived -= num_bytes
            self.resumed_bytes -= num_bytes
        log.info("%s: %d bytes that were let go come again", self.info.uri, num_bytes)
        return again

    def _ranges_of(self, gone: dict[int, int]) -> list[int]:
        """Those that lie in blocks that were let go."""
        places = stretches(gone)
        return [index for index, start in enumerate(self.starts) if holds(places, start)]
