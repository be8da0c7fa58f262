"""Ranges of objects, fetched in parallel into partial files, and verified on the way.

Worker threads take the ranges in order, and write what they read from the socket to its final
place in the preallocated file. Where the manifest has digests of blocks they compare those, too;
else another thread follows behind them with SHA-256, which so hides behind the transfer. A journal
says which bytes are there: a killed download goes on from them.

The order is that of the file, or that in which somebody wants the bytes, who may read them out of
the partial file as they come: see `Want` and `RangedFetch.wait`.
"""

from __future__ import annotations

import bisect
import contextlib
import contextvars
import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ups.data.answers import receive
from ups.data.blocks import BlockCheck
from ups.data.cuts import MIB, Want, cut, holds, stretches, turns_of
from ups.data.fetch_journal import FetchJournal, line
from ups.data.objectstore import ObjectInfo, ObjectStore, Opened
from ups.data.partial_file import PartialFile
from ups.data.s3errors import retrying
from ups.data.stamps import beside
from ups.errors import ChecksumMismatch, Interrupted, UpsError
from ups.files import read_fully
from ups.progress import Paced, Progress
from ups.trace import noted

# A request costs milliseconds of the processor; SHA-256, where it follows in order, is at the end
# as far behind as the ranges that arrive together are long.
RANGE_BYTES = 16 * MIB
# With 256 KiB the threads hand the interpreter's lock over so often that three objects of 128 MiB
# took 0.54 s from loopback; with 1 MiB 0.47, s5cmd 0.51 (medians of 13).
CHUNK_BYTES = MIB
_HASH_CHUNK_BYTES = 2 * MIB
_WATCH_S = 0.05


class RangedFetch:
    """One download into the partial file of `dest`; used once, under the lock of `dest`.

    Args:
        num_threads: ranges fetched at once.
        range_bytes: of one request, at most.
        first: the object's first range, where it has been asked for already.
        wants: what comes first; the rest follows in the order of the file.
        by_blocks: a range that was let go is as short as a block.
    Attributes:
        num_arrived: bytes that are in the partial file.
        resumed_bytes: what an earlier, interrupted download left and is not fetched again.
        md5: of the whole, once it is there, where nothing but an MD5 is there to compare with.
        starts, filled: of each range, where it begins, and how much of it is there.
        changed: guards what becomes of the ranges, and says that something has.
        halt: set once no thread is to write any more.
        file, journal, check, were_gone: the partial file; what is noted of it; its blocks; and what
            an earlier fetch let go.
    """

    def __init__(
        self,
        store: ObjectStore,
        info: ObjectInfo,
        dest: Path,
        num_threads: int,
        range_bytes: int = RANGE_BYTES,
        first: Opened | None = None,
        wants: Sequence[Want] = (),
        *,
        by_blocks: bool = False,
    ) -> None:
        self.store, self.info, self.dest = store, info, dest
        self.partial = beside(dest, "part")
        self.file = PartialFile(self.partial, info.num_bytes)
        self.journal = FetchJournal(beside(dest, "journal"), info)
        self.md5: str | None = None
        self._first = first
        arrived = self.journal.read(self.partial)
        self.were_gone, self.journal.gone = self.journal.gone, {}
        gone = [(at, at + n) for at, n in self.were_gone.items()]
        borders = [*arrived, *(gone if by_blocks else stretches(self.were_gone))]
        self.starts, self._ends = cut(info.num_bytes, range_bytes, borders, wants)
        self.filled = [
            end - start if holds(arrived, start) else 0
            for start, end in zip(self.starts, self._ends, strict=True)
        ]
        self._turns = turns_of(self.starts, wants)
        self.check = None
        if info.blocks is not None:
            self.check = BlockCheck(info.uri, info.num_bytes, info.blocks, arrived)
        self._num_threads = num_threads
        self.resumed_bytes = self.num_arrived = sum(self.filled)
        self.changed = threading.Condition()  # guards what stands below, _filled and _done
        self.halt = threading.Event()
        self._live: list[Any] = []  # bodies that are being read
        self._error: BaseException | None = None

    def run(self, stop: threading.Event | None, progress: Progress | None) -> str:
        """Fetch what is missing; returns the SHA-256 of the whole.

        Raises:
            DiskFull: checked before the first byte.
            Interrupted: `stop` was set; the partial file stays, to be resumed.
            FetchError (ObjectChanged and NoRanges too), ObjectUnavailable: from the first thread
                that failed.
        """
        with self.opened():
            start_fetching([self], self._num_threads)
            return self.verify(stop, progress)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Have the partial file ready to be filled; at the end no thread fills it any more.

        What arrived is kept then, unless it was found to be false.

        Raises:
            DiskFull: there is no room for it.
        """
        with contextlib.ExitStack() as stack:
            self._open_file()
            stack.callback(self.file.close)
            self._write_journal()
            self.journal_fd = self.journal.open()
            stack.callback(os.close, self.journal_fd)
            stack.callback(self._keep)  # after the workers: to the byte
            stack.callback(self._stop_workers)
            yield

    def wait(self, start: int, end: int) -> None:
        """Return when the bytes [start, end) are in the partial file.

        Raises:
            Interrupted: the fetch was stopped before.
            FetchError, …: what it has failed with.
        """
        first = bisect.bisect_right(self.starts, start) - 1
        last = bisect.bisect_left(self.starts, end)
        with self.changed:
            if self._is_there(first, last):
                return
            with noted("wait for bytes", object=self.info.uri, bytes=[start, end]):
                while not self._is_there(first, last):
                    self.raise_if_over(None)
                    self.changed.wait(_WATCH_S)

    def _is_there(self, first: int, last: int) -> bool:
        """Whether the ranges from `first` up to `last` are there."""
        return all(self.filled[i] == self.length(i) for i in range(first, last))

    def _open_file(self) -> None:
        self.file.require_room(self.info.num_bytes, self.info.uri)
        self.file.open(whole=True)

    @property
    def fd(self) -> int:
        """The partial file, while it is `opened`."""
        return self.file.fd

    @property
    def token(self) -> str:
        """Names the bytes that have arrived, which another download may go on from."""
        return self.journal.token

    def _write_journal(self) -> None:
        self.journal.write((s, n) for s, n in zip(self.starts, self.filled, strict=True) if n)

    def _keep(self) -> None:
        if isinstance(self._error, ChecksumMismatch):
            self.discard()
        else:
            self._write_journal()

    def discard(self) -> None:
        """Remove what has arrived."""
        self.partial.unlink(missing_ok=True)
        self.journal.remove()

    def publish(self) -> os.stat_result:
        """Move the finished file to its place; returns its stat there."""
        self.partial.replace(self.dest)
        self.journal.remove()
        return self.dest.stat()

    def missing(self) -> Iterator[tuple[int, int]]:
        """(turn, index) of the ranges that are not there in full."""
        for index, turn in enumerate(self._turns):
            if self.filled[index] < self.length(index):
                yield turn, index

    def hold_back(self) -> None:
        """Return when one of its ranges may be fetched."""

    def fetch(self, index: int, buffer: memoryview) -> None:
        """Fetch a range; what it fails with is raised to whoever waits, and ends the others.

        Args:
            buffer: of CHUNK_BYTES, which it is received into.
        """
        try:
            if not self.halt.is_set():
                place = [self.starts[index], self._ends[index]]
                with noted("fetch", object=self.info.uri, bytes=place):
                    retrying(
                        functools.partial(self._fetch, index, buffer),
                        uri=self.info.uri,
                        endpoint=self.store.endpoint_of(self.info.bucket),
                        retry=self.store.retry,
                        halt=self.halt,
                        progressed=functools.partial(self.filled.__getitem__, index),
                    )
        except BaseException as error:  # noqa: BLE001, raised again by whoever waits
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tell whoever waits, and end the others."""
        with self.changed:
            self._error = self._error or error
            self.halt.set()
            self.changed.notify_all()

    def _fetch(self, index: int, buffer: memoryview) -> None:
        """Read the rest of a range; a halt ends it early."""
        first, end = self.starts[index], self._ends[index]
        start = first + self.filled[index]
        if self._first is not None and end - start == self._first.num_bytes and start == 0:
            body, self._first = self._first.body, None
        else:
            body = self.store.open_range(self.info, start, end)
        try:
            if not self._begin(body):
                return
            try:
                while start < end and not self.halt.is_set():
                    # To the end of a block, so that the next chunk is one.
                    room = buffer[: min(CHUNK_BYTES - start % CHUNK_BYTES, end - start)]
                    chunk = room[: receive(body, room)]
                    if not chunk:
                        raise ConnectionError(f"the body ended {end - start} bytes early")
                    self.file.write(chunk, start)
                    if self.check is not None:
                        self.check.add(self.fd, start, chunk)
                    start += len(chunk)
                    # Noted first: what is made of bytes goes with `token`, which lasts no longer.
                    self.file.append(self.journal_fd, line(first, start - first))
                    self._note(index, start - first, len(chunk))
            finally:
                with self.changed:
                    self._live.remove(body)
                    self.changed.notify_all()
        finally:
            body.close()

    def _note(self, index: int, filled: int, num_new: int) -> None:
        """So much of a range is there."""
        with self.changed:
            self.filled[index] = filled
            self.num_arrived += num_new
            self.changed.notify_all()

    def _begin(self, body: Any) -> bool:
        """Whether the thread may use the files, which stay open while its body is live."""
        with self.changed:
            if self.halt.is_set():
                return False
            self._live.append(body)
            return True

    def _stop_workers(self) -> None:
        """Return when no thread touches the files any more.

        A thread that reads is woken by shutting down its socket. One that still waits for an
        answer is left alone: it finds the halt before it writes anything.
        """
        with self.changed:
            self.halt.set()
            for body in self._live:
                with contextlib.suppress(AttributeError, ValueError, RuntimeError, OSError):
                    body._raw_stream.shutdown()  # boto3 has no name for it; it may be over already
            self.changed.wait_for(lambda: not self._live)

    def verify(self, stop: threading.Event | None, progress: Progress | None) -> str:
        """The SHA-256 of the whole, once all of it is there.

        It is the manifest's where all blocks are as that says; else it is taken here.

        Raises: as `run`; BlockMismatch, as soon as a block is known to be false.
        """
        with self.changed:
            if self.halt.is_set() and self._error is None:
                raise self._stopped()
            fd = os.dup(self.fd)  # of its own: the other is closed when the fetch is stopped
        report = Paced(progress, self.info.num_bytes)
        try:
            if self.check is None:
                sha256 = self._hash(fd, stop, report)
            else:
                sha256 = self._check_blocks(self.check, fd, stop, report)
        finally:
            os.close(fd)
        report.end()
        return sha256

    def _check_blocks(
        self, check: BlockCheck, fd: int, stop: threading.Event | None, report: Paced
    ) -> str:
        """Compare what an earlier process left, and wait until the threads have compared the rest.

        What was left may have been lost in a power cut; so it is read again, once.
        """
        try:
            for index in check.left_over:
                self.raise_if_over(stop)
                report(self.num_arrived)
                check.check_left_over(fd, index)
        except ChecksumMismatch as error:
            self._fail(error)
            raise
        # A thread notes bytes after it has compared them; whoever waits for them needs the note.
        while check.num_left or self.num_arrived < self.info.num_bytes:
            with self.changed:
                self.raise_if_over(stop)
                self.changed.wait(_WATCH_S)
            report(self.num_arrived)
        assert self.info.sha256 is not None, "blocks stand in a manifest, with a SHA-256"
        return self.info.sha256

    def _hash(self, fd: int, stop: threading.Event | None, report: Paced) -> str:
        """SHA-256, following behind the ranges in the order of the file."""
        digest, total = hashlib.sha256(), self.info.num_bytes
        md5 = hashlib.md5(usedforsecurity=False)
        has_md5 = self.info.sha256 is None and self.info.md5 is not None
        buffer = memoryview(bytearray(min(_HASH_CHUNK_BYTES, total)))
        for index, start in enumerate(self.starts):
            position = 0
            while position < self.length(index):
                with self.changed:
                    self.raise_if_over(stop)
                    if self.filled[index] == position:
                        self.changed.wait(_WATCH_S)
                    ready = min(self.filled[index], position + _HASH_CHUNK_BYTES)
                report(self.num_arrived)
                part = buffer[: ready - position]
                if missing := read_fully(fd, part, start + position):
                    raise UpsError(f"{self.partial} became {missing} bytes shorter")
                digest.update(part)
                if has_md5:
                    md5.update(part)
                position = ready
        self.md5 = md5.hexdigest() if has_md5 else None
        return digest.hexdigest()

    def raise_if_over(self, stop: threading.Event | None) -> None:
        if self._error is not None:
            raise self._error
        if self.halt.is_set() or (stop is not None and stop.is_set()):
            raise self._stopped()

    def _stopped(self) -> Interrupted:
        return Interrupted(
            f"{self.info.uri}: stopped after {self.num_arrived / 1e6:.0f} of "
            f"{self.info.num_bytes / 1e6:.0f} MB; the next download goes on from there"
        )

    def length(self, index: int) -> int:
        return self._ends[index] - self.starts[index]


def start_fetching(fetches: Sequence[RangedFetch], num_threads: int) -> None:
    """Start threads that fetch what is missing of several objects, as its turn comes.

    Each of the objects is `opened`; whatever a range fails with is told to who waits for it.
    """
    missing = [(*job, fetch) for fetch in fetches for job in fetch.missing()]
    jobs = [(fetch, index) for _, index, fetch in sorted(missing, key=lambda job: job[0])]
    todo, lock = iter(jobs), threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while True:
            with lock:
                job = next(todo, None)
            if job is None:
                return
            fetch, index = job
            fetch.hold_back()
            fetch.fetch(index, buffer)

    for n in range(min(num_threads, len(jobs))):
        run = functools.partial(contextvars.copy_context().run, work)  # for its log
        threading.Thread(target=run, name=f"fetch {n}", daemon=True).start()
