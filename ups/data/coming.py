"""Objects on their way to the disk, of which rows are read while the rest is being fetched."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from ups.data.cuts import Want
from ups.data.letting_go import LettingGo
from ups.data.objectstore import ObjectInfo, ObjectStore, Opened
from ups.data.passing_fetch import PassingFetch
from ups.data.ranges import RangedFetch
from ups.data.s3errors import retrying, transport_errors
from ups.data.sources import PROVISIONAL, file_state
from ups.data.stamps import beside
from ups.data.transfer import Download, arrived, compare, publish
from ups.errors import CannotStream, ChecksumMismatch, Interrupted, UpsError
from ups.files import lock_holder, lock_now
from ups.progress import Progress
from ups.trace import noted

PAGE_BYTES = 64 << 10  # HDF5 writes what describes a data set near the begin of the file


class ComingObject:
    """An object of the store on its way to `path`: its header at once, its rows as they arrive.

    Use: `header` to learn what is in it, `plan` with what is wanted of it first, `begin`, then
    `wait` and `open` from any thread; `verdict` once, and `close` in the end.

    Attributes:
        sha256: by the manifest; else a name of this version of the object, up to the verdict.
        is_held: whether it comes to `path` by `settle`, and not by the verdict.
        started: time.perf_counter() at which it was asked for.
        state: see `Staged`, once its verdict is there; None of one that is let go.
    Raises:
        CannotStream: the store sends the whole object, whatever range it is asked for; or it tells
            two sizes, and no manifest says which is true.
        ObjectUnavailable, FetchError: see `ObjectStore.open_first`.
    """

    def __init__(self, store: ObjectStore, bucket: str, key: str, path: Path) -> None:
        self._store, self.path = store, path
        self.started = time.perf_counter()
        with noted("ask for the first bytes", object=f"s3://{bucket}/{key}"):
            self.info, first = store.open_first(bucket, key, PAGE_BYTES)
        with contextlib.ExitStack() as stack:
            if first is not None:
                stack.callback(first.body.close)
            if self.info.sha256 is None:  # one more witness
                size = store.bytes_by_head(bucket, key)
                if size not in (None, self.info.num_bytes):
                    raise CannotStream(
                        f"{self.info.uri} has {self.info.num_bytes} or {size} bytes, by GET or HEAD"
                    )
            if first is not None and first.num_bytes > PAGE_BYTES:
                raise CannotStream(f"{store.endpoint_of(bucket)} knows no ranges")
            self._head = b"" if first is None else self._read_head(first)
        self.num_bytes = self.info.num_bytes
        self.sha256 = self.info.sha256 or _provisional(store.endpoint, self.info)
        self.is_held = False
        self.state: tuple[int, ...] | None = None
        self._fetch: PassingFetch | None = None
        self._lock, self._opened = contextlib.ExitStack(), contextlib.ExitStack()
        self._letting_go: LettingGo | None = None
        self._is_there = self._is_doubted = False
        self._ended_with: UpsError | None = None
        self._moving = threading.Lock()

    def _read_head(self, first: Opened) -> bytes:
        """The first block; empty where the body broke off, and it is asked for again."""
        try:
            head: bytes = first.body.read(first.num_bytes)
        except transport_errors():
            return b""
        return head if len(head) == first.num_bytes else b""

    def header(self) -> BinaryIO:
        """The object as a file that fetches what is read of it."""
        return cast(BinaryIO, _RemoteFile(self._store, self.info, self._head))

    def plan(
        self, wants: Sequence[Want], num_threads: int, letting_go: LettingGo | None = None
    ) -> None:
        """See what has arrived of it earlier, and cut the rest into ranges.

        Args:
            letting_go: what is needed of it, where it is not to be kept: it is never at `path`
                then, for it is not whole.
        Raises:
            CannotStream: somebody else is fetching it, or just has.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if (lock := lock_now(held := beside(self.path, "lock"))) is None:
            raise CannotStream(f"{lock_holder(held)} is fetching {self.path}")
        self._lock.callback(os.close, lock)
        if self.path.exists():
            raise CannotStream(f"another process has just fetched {self.path}")
        self._letting_go = letting_go
        self._fetch = PassingFetch(
            self._store, self.info, self.path, num_threads, wants, letting_go
        )

    def skip_gone(self) -> None:
        """See `PassingFetch.skip_gone`."""
        self._begun.skip_gone()

    @property
    def lets_go(self) -> bool:
        """Whether it is not to be kept."""
        return self._letting_go is not None

    def begin(self) -> RangedFetch:
        """Have the partial file ready; what of it is missing is fetched by `start_fetching`.

        Raises:
            DiskFull: there is no room for it.
        """
        self._opened.enter_context(self._begun.opened())
        return self._begun

    def done_with(self, start: int, end: int) -> None:
        """What is made of these bytes is made."""
        if self._letting_go is not None:
            self._letting_go.done(start, end)

    def settle(self) -> None:
        """Have it at `path`, or let go of what is not needed any more: all is encoded."""
        with self._moving:
            if self._letting_go is None:
                self._publish()
            elif self._letting_go.kept_bytes:
                self._letting_go.matched_all()
            else:
                self._remove()

    def _publish(self) -> None:
        if self._is_there or self._ended_with is not None:
            return
        self._opened.close()  # no thread writes any more
        publish(self._begun, self._verified)
        self.state = file_state(self.path)
        self._is_there = True
        self._lock.close()  # who comes now finds the file

    def remove(self) -> None:
        """Remove what is left of one that is let go: nobody needs any of it."""
        with self._moving:
            self._remove()

    def _remove(self) -> None:
        if self.lets_go and self._ended_with is None:  # the lock is held
            os.ftruncate(self._begun.fd, 0)  # who has read it still has it open
            self._opened.close()
            self._begun.discard()
            self._ended_with, self._is_doubted = self._stopped(), False
            self._lock.close()

    @property
    def token(self) -> str:
        """Names the bytes that have arrived: what was made of others is worth nothing."""
        return self._begun.token

    @property
    def num_arrived(self) -> int:
        """Bytes that are there."""
        return self._begun.num_arrived

    @property
    def num_fetched(self) -> int:
        """Bytes that have come so far, without what an earlier fetch left."""
        return self._begun.num_arrived - self._begun.resumed_bytes

    def wait(self, start: int, end: int) -> None:
        """Return when the bytes [start, end) are there; see `RangedFetch.wait`."""
        if not self._is_there:
            self._begun.wait(start, end)

    def open(self) -> int:
        """A file descriptor of what is there of it; whoever calls closes it.

        Raises:
            Interrupted: it was closed. ChecksumMismatch: it is not what its manifest says.
        """
        with self._moving:
            self._check_open()
            path = self.path if self._is_there else f"/proc/self/fd/{self._begun.fd}"
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def verdict(self, stop: threading.Event, progress: Progress | None) -> Download:
        """Wait until all of it has come, and is what the store says: then it is at `path`.

        One that is held or let go stays aside.

        Raises:
            ChecksumMismatch: it is not, and what arrived is removed.
            Interrupted: `stop` was set.
            FetchError, …: what the fetch has failed with; what arrived is kept.
        """
        fetch = self._begun
        try:
            sha256 = fetch.verify(stop, progress)
            compare(fetch, sha256)
        except ChecksumMismatch as error:
            with self._moving:
                if self._ended_with is None:  # the lock is held
                    self._ended_with = error
                    self._opened.close()  # no thread writes any more
                    fetch.discard()
            raise
        with self._moving:
            self._check_open()  # the lock is held
            self._verified = sha256
            if not self.lets_go and not self.is_held:
                self._publish()
        path = fetch.partial if self.lets_go else self.path
        return arrived(fetch, path, sha256, self.started)

    def doubt(self) -> None:
        """Do not keep it beyond `close`: what it holds may have been damaged on its way."""
        self._is_doubted = True

    def close(self) -> None:
        """Stop fetching it; what has arrived is kept, and the next fetch goes on from there."""
        with self._moving:
            self._ended_with = self._ended_with or self._stopped()
            self._opened.close()
            if self._is_doubted and self._fetch is not None and not self._is_there:
                self._fetch.discard()
                self._is_doubted = False  # once the lock is let go, another process may fetch it
            self._lock.close()

    def _check_open(self) -> None:
        if self._ended_with is not None:
            raise self._ended_with

    def _stopped(self) -> Interrupted:
        return Interrupted(f"{self.info.uri}: stopped before all of it was there")

    @property
    def _begun(self) -> PassingFetch:
        if self._fetch is None:
            raise self._stopped()
        return self._fetch


def _provisional(endpoint: str, info: ObjectInfo) -> str:
    """Stands for the SHA-256 of an object up to the verdict; each version has another."""
    text = f"{endpoint} {info.uri} {info.num_bytes} {info.etag}"
    return PROVISIONAL + hashlib.sha256(text.encode()).hexdigest()


class _RemoteFile(io.RawIOBase):
    """An object that can be read anywhere; what of it is asked for is fetched once, in blocks."""

    def __init__(self, store: ObjectStore, info: ObjectInfo, head: bytes) -> None:
        self._store, self._info = store, info
        self._blocks = {0: head} if head else {}
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.num_bytes}
        self._position = begin[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, but for the end of the object: HDF5 takes what is left for read."""
        start, end = self._position, min(self._position + len(buffer), self._info.num_bytes)
        if start >= end:
            return 0
        numbers = range(start // PAGE_BYTES, -(-end // PAGE_BYTES))
        if missing := [number for number in numbers if number not in self._blocks]:
            self._fetch(missing[0], missing[-1] + 1)
        content, offset = b"".join(map(self._blocks.__getitem__, numbers)), start % PAGE_BYTES
        buffer[: end - start] = content[offset : offset + end - start]
        self._position = end
        return end - start

    def _fetch(self, first: int, last: int) -> None:
        """Have the blocks [first, last), by one request."""
        start, end = first * PAGE_BYTES, min(last * PAGE_BYTES, self._info.num_bytes)

        def get() -> bytes:
            with contextlib.closing(self._store.open_range(self._info, start, end)) as body:
                content: bytes = body.read(end - start)
            if len(content) < end - start:
                raise ConnectionError(f"the body ended {end - start - len(content)} bytes early")
            return content

        content = retrying(
            get,
            uri=self._info.uri,
            endpoint=self._store.endpoint_of(self._info.bucket),
            retry=self._store.retry,
        )
        for number in range(first, last):
            at = number * PAGE_BYTES - start
            self._blocks[number] = content[at : at + PAGE_BYTES]
