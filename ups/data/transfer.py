"""Download one object to one file: reuse what is there and verified, else fetch and verify it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ups.background import Background
from ups.data.objectstore import ObjectInfo, ObjectStore, Opened
from ups.data.ranges import RANGE_BYTES, RangedFetch
from ups.data.s3errors import ETagMismatch, NoRanges, ObjectChanged
from ups.data.stamps import Stamp, beside, hash_file, read_stamp, save_stamp, write_stamp
from ups.data.web import uri_of
from ups.errors import ChecksumMismatch, FetchError
from ups.files import exclusive_lock
from ups.machine.cgroup import num_cores
from ups.progress import Progress
from ups.units import format_size

logger = logging.getLogger(__name__)

STORE = "the object store"  # what an answer is waited for
_WHOLE = 1 << 50  # bytes of a range that is more than any object


@dataclass(frozen=True, slots=True)
class Download:
    """How an object came to be on the disk."""

    path: Path
    sha256: str
    num_bytes: int
    seconds: float
    reused: bool  # no byte of the object was transferred
    resumed_bytes: int  # taken over from an interrupted download
    is_verified: bool  # compared with a digest from the store, now or when it was fetched


def download(
    store: ObjectStore,
    bucket: str,
    key: str,
    dest: Path,
    *,
    num_threads: int | None = None,
    range_bytes: int = RANGE_BYTES,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> Download:
    """Have the object at `dest`, whole and verified.

    A file there is reused if its SHA-256 is the manifest's, or without a manifest if its ETag is
    the object's; a stamp spares hashing it. What is fetched is compared with the manifest's
    SHA-256, without a manifest with the ETag where that is an MD5, and the log says where neither
    is there. A file at `dest` is always whole: a new one is
    verified before it takes the place of the old. Concurrent calls for one `dest`, in threads or
    processes, fetch once.

    Args:
        num_threads: ranges fetched at once; 1 fetches them one after the other. Default: two for
            each core, up to 8; more would wait for the interpreter's lock.
        range_bytes: of one request.
        stop: checked all the time; what has arrived is kept for the next call.
        progress: called in this thread, at most 10 times a second.
    Raises:
        ObjectUnavailable: no such bucket or key, forbidden, or no credentials.
        FetchError: the store failed too often. ChecksumMismatch: it did so twice.
        DiskFull: not enough room, checked before the transfer.
        Interrupted: `stop` was set.
    """
    dest = Path(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    num_threads = num_threads or min(8, 2 * num_cores())
    fetch = _Fetch(store, bucket, key, dest, num_threads, range_bytes, stop, progress)
    try:
        try:
            return fetch.once(fresh=False)
        except NoRanges as error:
            logger.info("%s: it is fetched in one piece", error)
            fetch = replace(fetch, range_bytes=_WHOLE)
            return fetch.once(fresh=False)
    except (ChecksumMismatch, ObjectChanged) as error:
        logger.warning("%s; starting over, once", error)
        return fetch.once(fresh=True)


def reuse(
    store: ObjectStore,
    bucket: str,
    key: str,
    dest: Path,
    stop: threading.Event | None = None,
    listed: ObjectInfo | None = None,
) -> Download | None:
    """What `download` returns where the file's stamp spares hashing it; nothing is fetched.

    Args:
        listed: what a listing says of the object; the store is asked anew where that is another.
    Returns: None where more is to be done.
    Raises: ObjectUnavailable, FetchError, Interrupted: see `download`.
    """
    fetch = _Fetch(store, bucket, key, dest, 1, RANGE_BYTES, stop, None)
    return fetch.by_stamp(False, time.perf_counter(), listed)


@dataclass(frozen=True, slots=True)
class _Fetch:
    store: ObjectStore
    bucket: str
    key: str
    dest: Path
    num_threads: int
    range_bytes: int
    stop: threading.Event | None
    progress: Progress | None

    def once(self, fresh: bool) -> Download:
        started = time.perf_counter()
        if (done := self.by_stamp(fresh, started)) is not None:
            return done
        with exclusive_lock(beside(self.dest, "lock"), self.stop):
            if not self.dest.exists() and not beside(self.dest, "journal").exists():
                return self._fetch_new(fresh, started)
            stamp = read_stamp(self.dest)  # whoever held the lock may have fetched it
            info = self._head(stamp, fresh)
            sha256 = self._stamped(stamp, info) or self._hashed(stamp, info)
            if sha256 is not None:
                return self._reused(sha256, info, started)
            if info is None:
                raise FetchError(
                    f"{self.dest} is damaged, and {self.store.endpoint_of(self.bucket)} cannot be "
                    "reached; "
                    "run again when it can"
                )
            return self._fetched(info, None, started)

    def by_stamp(
        self, fresh: bool, started: float, listed: ObjectInfo | None = None
    ) -> Download | None:
        """The file as it is, where its stamp says that it is the object."""
        stamp = read_stamp(self.dest)
        if stamp is None:
            return None
        is_same = listed is not None and listed.version.is_noted(stamp.etag)
        info = listed if is_same else self._head(stamp, fresh)
        sha256 = self._stamped(stamp, info)
        return None if sha256 is None else self._reused(sha256, info, started)

    def _fetch_new(self, fresh: bool, started: float) -> Download:
        """There is nothing to compare with: the first bytes are asked for at once."""

        def open_first() -> tuple[ObjectInfo, Opened | None]:
            return self.store.open_first(self.bucket, self.key, self.range_bytes, fresh=fresh)

        asked = Background(open_first, "ask the object store")
        info, first = asked.result_unless(self.stop, STORE)
        try:
            return self._fetched(info, first, started)
        finally:
            if first is not None:
                first.body.close()

    def _head(self, stamp: Stamp | None, fresh: bool) -> ObjectInfo | None:
        """None where the store cannot be reached but a file that was verified is there."""
        retry = self.store.retry
        if stamp is not None:
            retry = replace(retry, attempts=min(2, retry.attempts), lasting_s=0)

        def head() -> ObjectInfo:
            info = self.store.head(self.bucket, self.key, fresh=fresh, retry=retry)
            if stamp is None or fresh or info.version.is_noted(stamp.etag):
                return info
            # The object changed since, so what was read of the manifest may be of before.
            return self.store.head(self.bucket, self.key, fresh=True, retry=retry)

        try:
            return Background(head, "ask the object store").result_unless(self.stop, STORE)
        except FetchError as error:
            if stamp is None:
                raise
            logger.warning("using %s as verified earlier, not compared anew: %s", self.dest, error)
            return None

    def _stamped(self, stamp: Stamp | None, info: ObjectInfo | None) -> str | None:
        if stamp is None or not stamp.spares_hashing(self.dest):
            return None
        if stamp.sha256 != expected_digest(stamp, info):
            return None
        if info is not None and not info.version.is_noted(stamp.etag):
            save_stamp(self.dest, replace(stamp, etag=info.etag))
        return stamp.sha256

    def _hashed(self, stamp: Stamp | None, info: ObjectInfo | None) -> str | None:
        """The digest of the file, if hashing it shows that it is the object; then stamp it."""
        expected = expected_digest(stamp, info)
        if expected is None or not self.dest.is_file():
            return None
        stat = self.dest.stat()
        has_size = info is None or stat.st_size == info.num_bytes
        sha256 = hash_file(self.dest, self.stop) if has_size else ""
        if sha256 != expected:
            logger.warning("%s differs from its object: it is replaced", self.dest)
            return None
        etag = info.etag if info else stamp.etag if stamp else ""
        write_stamp(self.dest, stat, sha256, etag)
        return sha256

    def _fetched(self, info: ObjectInfo, first: Opened | None, started: float) -> Download:
        whole = 0 if first is None else first.num_bytes  # longer than asked: it knows no ranges
        range_bytes = max(self.range_bytes, whole)
        fetch = RangedFetch(self.store, info, self.dest, self.num_threads, range_bytes, first)
        try:
            sha256 = self._verified(fetch, info)
        except (ChecksumMismatch, ObjectChanged, NoRanges):
            fetch.discard()
            raise
        return finished(fetch, sha256, started)

    def _verified(self, fetch: RangedFetch, info: ObjectInfo) -> str:
        """Fetch what is missing; the SHA-256 of the whole, compared with what the store says."""
        size = None
        if info.sha256 is None:  # one more witness
            ask = functools.partial(self.store.bytes_by_head, self.bucket, self.key)
            size = Background(ask, "ask for a size")
        sha256 = fetch.run(self.stop, self.progress)
        compare(fetch, sha256)
        if size is not None and size.result_unless(self.stop, STORE) not in (None, info.num_bytes):
            raise ObjectChanged(
                f"{info.uri}: {info.num_bytes} bytes by Content-Range, {size.result()} by HEAD"
            )
        return sha256

    def _reused(self, sha256: str, info: ObjectInfo | None, started: float) -> Download:
        num_bytes, seconds = self.dest.stat().st_size, time.perf_counter() - started
        size, uri = format_size(num_bytes), uri_of(self.bucket, self.key)
        verified = info is None or info.is_verifiable
        how = "verified" if verified else "not verified but taken"
        logger.info("reused %s, %s, %s as %s in %.2f s", self.dest, size, how, uri, seconds)
        if self.progress is not None:
            self.progress(num_bytes, num_bytes)
        return Download(self.dest, sha256, num_bytes, seconds, True, 0, verified)


def compare(fetch: RangedFetch, sha256: str) -> None:
    """Compare what was fetched with what the store says of it.

    Raises:
        ChecksumMismatch: it is something else.
    """
    info = fetch.info
    if info.sha256 is not None and sha256 != info.sha256:
        raise ChecksumMismatch(info.uri, info.sha256, sha256)
    if info.sha256 is None and fetch.md5 != info.md5:
        raise ETagMismatch(info.uri, info.md5, fetch.md5)


def finished(fetch: RangedFetch, sha256: str, started: float) -> Download:
    """Move a file that is there and compared to its place, and say so: see `arrived`."""
    publish(fetch, sha256)
    return arrived(fetch, fetch.dest, sha256, started)


def publish(fetch: RangedFetch, sha256: str) -> None:
    """Move a file that is there and compared to its place, and stamp it."""
    write_stamp(fetch.dest, fetch.publish(), sha256, fetch.info.etag, fetch.token)


def arrived(fetch: RangedFetch, path: Path, sha256: str, started: float) -> Download:
    """What came of a fetch whose bytes were compared; a line says it.

    Args:
        path: where they are.
        started: time.perf_counter() at which the download began.
    """
    info = fetch.info
    seconds, resumed = time.perf_counter() - started, fetch.resumed_bytes
    size, rate = format_size(info.num_bytes), (info.num_bytes - resumed) / 1e6 / seconds
    how = f", {format_size(resumed)} resumed" if resumed else ""
    if info.sha256 is not None:
        how = f"sha256 verified against the manifest{how}"
    elif info.md5 is not None:
        how = f"MD5 verified against the ETag{how}"
    else:
        how = f"not verified: no manifest has its sha256, and its ETag is no MD5{how}"
    level = logging.INFO if info.is_verifiable else logging.WARNING
    said = f"downloaded {info.uri} {size} in {seconds:.1f} s, {rate:.0f} MB/s"
    logger.log(level, "%s, %s", said, how)
    verified = info.is_verifiable
    return Download(path, sha256, info.num_bytes, seconds, False, resumed, verified)


def expected_digest(stamp: Stamp | None, info: ObjectInfo | None) -> str | None:
    """The digest that a file must have to be the object, where one is known."""
    if info is not None and info.sha256 is not None:
        return info.sha256
    if stamp is None:
        return None
    if info is None:
        return stamp.sha256
    same = info.version.is_noted(stamp.etag) and info.num_bytes == stamp.num_bytes
    return stamp.sha256 if same else None
