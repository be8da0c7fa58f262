"""Ranges of one object, fetched in parallel into one partial file, and hashed on the way.

Worker threads take the ranges in order, and write what they read from the socket to its final
place in the preallocated file. The calling thread follows behind them with SHA-256, which so
hides behind the transfer. A journal says how far each range is: a killed download goes on there.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import hashlib
import json
import mmap
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from ups.data.objectstore import ObjectInfo, ObjectStore, Opened
from ups.data.s3errors import retrying
from ups.data.stamps import beside, boot_id
from ups.errors import DiskFull, Interrupted, UpsError
from ups.files import require_free_space, write_atomically, write_fully
from ups.progress import Progress

MIB = 1 << 20
# A request costs milliseconds of the processor; SHA-256, which follows in order, is at the end as
# far behind as the ranges that arrive together are long.
RANGE_BYTES = 16 * MIB
ROOT_REMEDY = "set data.root or PDEBENCH_ROOT to a larger disk"
# With 256 KiB the threads hand the interpreter's lock over so often that three objects of 128 MiB
# took 0.54 s from loopback; with 1 MiB 0.47, s5cmd 0.51 (medians of 13).
_CHUNK_BYTES = MIB
_HASH_CHUNK_BYTES = 2 * MIB
_JOURNAL_BYTES = 8 * MIB  # of a range, between two lines in the journal: what a kill can cost
_WATCH_S = 0.05
_PROGRESS_S = 0.1


class RangedFetch:
    """One download into the partial file of `dest`; used once, under the lock of `dest`.

    Args:
        num_threads: ranges fetched at once.
        range_bytes: of one request, in whole MiB.
        first: the object's first range, where it has been asked for already.
    Attributes:
        resumed_bytes: what an earlier, interrupted download left and is not fetched again.
        md5: of the whole, once it is there, where nothing but an MD5 is there to compare with.
    """

    def __init__(
        self,
        store: ObjectStore,
        info: ObjectInfo,
        dest: Path,
        num_threads: int,
        range_bytes: int = RANGE_BYTES,
        first: Opened | None = None,
    ) -> None:
        self.store, self.info, self.dest = store, info, dest
        self.partial, self._journal = beside(dest, "part"), beside(dest, "journal")
        self.range_bytes = max(1, -(-range_bytes // MIB)) * MIB  # a memory map starts at a page
        self.md5: str | None = None
        self._first = first
        arrived = self._read_journal()
        num_ranges = -(-info.num_bytes // self.range_bytes)
        self._filled = [min(self._length(i), arrived.get(i, 0)) for i in range(num_ranges)]
        missing = [i for i in range(num_ranges) if self._filled[i] < self._length(i)]
        self._todo, self._num_threads = iter(missing), min(num_threads, len(missing))
        self.resumed_bytes = self._done = sum(self._filled)
        self._changed = threading.Condition()  # guards what stands below, _filled and _done
        self._halt = threading.Event()
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
        present = self.partial.stat().st_blocks * 512 if self.partial.exists() else 0
        needed = max(0, self.info.num_bytes - present)
        require_free_space(self.dest.parent, needed, self.info.uri, ROOT_REMEDY)
        with contextlib.ExitStack() as stack:
            self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, self._fd)
            self._allocate()
            self._write_journal()
            self._journal_fd = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            stack.callback(os.close, self._journal_fd)
            stack.callback(self._write_journal)  # after the workers: to the byte
            stack.callback(self._stop_workers)
            for n in range(self._num_threads):
                name = f"fetch {self.dest.name} {n}"
                work = functools.partial(contextvars.copy_context().run, self._work)  # for its log
                threading.Thread(target=work, name=name, daemon=True).start()
            return self._hash(stop, progress)

    def discard(self) -> None:
        """Remove what has arrived."""
        self.partial.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def publish(self) -> os.stat_result:
        """Move the finished file to its place; returns its stat there."""
        self.partial.replace(self.dest)
        self._journal.unlink(missing_ok=True)
        return self.dest.stat()

    def _work(self) -> None:
        try:
            while not self._halt.is_set():
                with self._changed:
                    index = next(self._todo, None)
                if index is None:
                    return
                retrying(
                    functools.partial(self._fetch, index),
                    uri=self.info.uri,
                    endpoint=self.store.endpoint,
                    retry=self.store.retry,
                    halt=self._halt,
                    progressed=functools.partial(self._filled.__getitem__, index),
                )
        except BaseException as error:  # noqa: BLE001, raised again by the calling thread
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _fetch(self, index: int) -> None:
        """Read the rest of a range; a halt ends it early."""
        first = index * self.range_bytes
        start, end = first + self._filled[index], first + self._length(index)
        if self._first is not None and end - start == self._first.num_bytes and start == 0:
            body, self._first = self._first.body, None
        else:
            body = self.store.open_range(self.info, start, end)
        try:
            if not self._begin(body):
                return
            try:
                while start < end and not self._halt.is_set():
                    chunk = body.read(min(_CHUNK_BYTES, end - start))
                    if not chunk:
                        raise ConnectionError(f"the body ended {end - start} bytes early")
                    self._write(self._fd, chunk, start)
                    start += len(chunk)
                    with self._changed:
                        self._filled[index] = start - first
                        self._done += len(chunk)
                        self._changed.notify_all()
                    if start == end or (start - first) % _JOURNAL_BYTES < len(chunk):
                        self._write(self._journal_fd, _line(index, start - first))
            finally:
                with self._changed:
                    self._live.remove(body)
                    self._changed.notify_all()
        finally:
            body.close()

    def _begin(self, body: Any) -> bool:
        """Whether the thread may use the files, which stay open while its body is live."""
        with self._changed:
            if self._halt.is_set():
                return False
            self._live.append(body)
            return True

    def _stop_workers(self) -> None:
        """Return when no thread touches the files any more.

        A thread that reads is woken by shutting down its socket. One that still waits for an
        answer is left alone: it finds the halt before it writes anything.
        """
        with self._changed:
            self._halt.set()
            for body in self._live:
                with contextlib.suppress(AttributeError, ValueError, RuntimeError, OSError):
                    body._raw_stream.shutdown()  # boto3 has no name for it; it may be over already
            self._changed.wait_for(lambda: not self._live)

    def _hash(self, stop: threading.Event | None, progress: Progress | None) -> str:
        digest, total, reported_at = hashlib.sha256(), self.info.num_bytes, 0.0
        md5 = hashlib.md5(usedforsecurity=False)
        has_md5 = self.info.sha256 is None and self.info.md5 is not None
        for index in range(len(self._filled)):
            length, position = self._length(index), 0
            with mmap.mmap(
                self._fd, length, access=mmap.ACCESS_READ, offset=index * self.range_bytes
            ) as window:
                while position < length:
                    if stop is not None and stop.is_set():
                        raise Interrupted(
                            f"{self.info.uri}: stopped after {self._done / 1e6:.0f} of "
                            f"{total / 1e6:.0f} MB; the next download goes on from there"
                        )
                    with self._changed:
                        if self._error is not None:
                            raise self._error
                        if self._filled[index] == position:
                            self._changed.wait(_WATCH_S)
                        ready = min(self._filled[index], position + _HASH_CHUNK_BYTES)
                    if progress is not None and time.monotonic() - reported_at >= _PROGRESS_S:
                        reported_at = time.monotonic()
                        progress(self._done, total)
                    with memoryview(window) as view, view[position:ready] as part:
                        digest.update(part)
                        if has_md5:
                            md5.update(part)
                    position = ready
        if progress is not None:
            progress(total, total)
        self.md5 = md5.hexdigest() if has_md5 else None
        return digest.hexdigest()

    def _length(self, index: int) -> int:
        return min(self.range_bytes, self.info.num_bytes - index * self.range_bytes)

    def _write(self, fd: int, data: bytes, offset: int | None = None) -> None:
        try:
            write_fully(fd, data, offset)
        except OSError as error:
            raise self._disk_error(error) from error

    def _allocate(self) -> None:
        size = self.info.num_bytes
        try:
            os.ftruncate(self._fd, size)
            if size:
                os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # then it stays sparse
                raise self._disk_error(error) from error

    def _disk_error(self, error: OSError) -> UpsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(
                f"{self.partial}: the disk is full; expected room for "
                f"{self.info.num_bytes / 1e6:.0f} MB. Make room, or {ROOT_REMEDY}"
            )
        return UpsError(f"{self.partial} cannot be written: {error}; {ROOT_REMEDY}")

    def _journal_head(self) -> dict[str, Any]:
        return {
            "etag": self.info.etag,
            "num_bytes": self.info.num_bytes,
            "range_bytes": self.range_bytes,
            "boot_id": boot_id(),
        }

    def _read_journal(self) -> dict[int, int]:
        """Bytes of each range that an interrupted download of the same object has written.

        Its range size is taken over. What the journal names may not have reached the disk before
        a reboot, so it is then used only if there is a SHA-256 to tell.
        """
        try:
            first, *rest = self._journal.read_text().splitlines()
            head = json.loads(first)
            range_bytes = int(head["range_bytes"])
            whole = self.partial.stat().st_size == self.info.num_bytes
            arrived = dict(_read_line(line) for line in rest)
            is_same = self.info.version.is_noted(head["etag"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        expected = self._journal_head() | {"range_bytes": range_bytes, "etag": head["etag"]}
        if self.info.sha256 is not None:
            expected["boot_id"] = head.get("boot_id")
        if not (whole and is_same) or head != expected or range_bytes < MIB or range_bytes % MIB:
            return {}
        self.range_bytes = range_bytes
        return arrived

    def _write_journal(self) -> None:
        lines = [_line(index, filled) for index, filled in enumerate(self._filled) if filled]
        head = f"{json.dumps(self._journal_head())}\n".encode()
        write_atomically(self._journal, head + b"".join(lines), durable=False)


def _line(index: int, filled: int) -> bytes:
    """A line of the journal: how far a range is, and a check of that."""
    text = f"{index} {filled}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _read_line(line: str) -> tuple[int, int]:
    """(index, filled); one that is cut short or damaged says that nothing has arrived.

    Lines written before have no check.
    """
    index, filled, *check = line.split(" ")
    if check not in ([], [f"{zlib.crc32(f'{index} {filled}'.encode()):08x}"]):
        return 0, 0
    return int(index), int(filled)
