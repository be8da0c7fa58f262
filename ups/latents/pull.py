"""Bring an entry of the shared cache into the one on this machine, every chunk checked on the way.

It comes into a private directory, as a build does. A pull that was cut short is gone on with: what
is there of the same generation is compared with the manifest, chunk by chunk, and not asked for
again. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from ups.background import at_once
from ups.config import Split
from ups.errors import CacheDamaged, CacheError, Interrupted
from ups.files import (
    lock_holder,
    lock_now,
    read_fully,
    require_free_space,
    start_writeback,
    sync_directory,
    write_fully,
)
from ups.latents import latent_file, store
from ups.latents.latent_file import LatentFile
from ups.latents.remote import Remote, reason_of
from ups.latents.store import BUILDING, Manifest
from ups.machine.cgroup import num_cores
from ups.progress import Progress
from ups.trace import noted
from ups.units import format_size

log = logging.getLogger(__name__)

PART_BYTES = 4 << 20  # of one request: of PDEBench's own data a chunk
REMEDY = "set training.latent_cache_dir to a larger disk"


class Part(NamedTuple):
    """Chunks of a file that are asked for at once: [first, end)."""

    file: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where the bytes of an entry came from.

    Attributes:
        num_bytes: that were fetched; less than the entry has where a pull was gone on with.
    """

    uri: str
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = self.num_bytes / 1e6 / max(self.seconds, 1e-3)
        return f"pulled from {self.uri}: {format_size(self.num_bytes)}, {rate:,.0f} MB/s"


class Pull:
    """One entry on its way into the cache; used once.

    Use: `begin`, then `fetch` for each of `parts`, from any thread, and `finish`; `close` in the
    end, whatever became of it.

    Attributes:
        parts: what is to be fetched; `there`: what an earlier pull left.
    """

    def __init__(self, remote: Remote, manifest: Manifest, cache_dir: Path) -> None:
        self.remote, self.manifest, self._cache_dir = remote, manifest, cache_dir
        self._entry = store.entry_dir(cache_dir, manifest.config_hash)
        self.directory = self._entry / f"{BUILDING}{manifest.generation}"
        self.parts: list[Part] = []
        self.there: list[Part] = []
        self._handles: list[int] = []
        self._opened, self._lock = ExitStack(), threading.Lock()
        self._writing, self._is_closed = threading.Lock(), False
        self._started, self._num_fetched = time.monotonic(), 0

    @property
    def uri(self) -> str:
        return self.remote.folder.uri(f"{self.manifest.config_hash}/{self.manifest.generation}")

    @property
    def pulled(self) -> Pulled:
        """What has been fetched so far."""
        return Pulled(self.uri, self._num_fetched, time.monotonic() - self._started)

    def begin(self) -> None:
        """Have the files be there, of full size, and the entry's lock be held.

        Raises:
            CacheError: another process builds the entry, or reads what was replaced of it.
            DiskFull: there is no room for it.
            OSError: the cache cannot be written.
        """
        if (lock := lock_now(path := self._entry / store.LOCK_NAME)) is None:
            raise CacheError(f"{lock_holder(path)} builds {self._entry}")
        self._opened.callback(os.close, lock)
        if store.valid_generation(self._cache_dir, self.manifest.config_hash):
            raise CacheError(f"another process has just built {self._entry}")
        whole = self._entry / self.manifest.generation
        if whole.exists() and not store.remove_unused(whole):
            raise CacheError(f"{whole} is read by another process, and is not the current one")
        there = self._left_behind()
        if there is None:
            self.drop()
            files = self.manifest.files
            needed = sum(file.data_offset + file.num_bytes for file in files)
            require_free_space(self._entry, needed, "an entry of the latent cache", REMEDY)
            self.directory.mkdir()
            for file in files:
                with (self.directory / file.name).open("wb") as handle:
                    handle.write(file.header)
                    os.posix_fallocate(handle.fileno(), 0, file.data_offset + file.num_bytes)
            there = [set() for _ in files]
        for index, file in enumerate(self.manifest.files):
            self._cut(index, file, there[index])
            opened = (self.directory / file.name).open("r+b", buffering=0)
            self._handles.append(self._opened.enter_context(opened).fileno())

    def _left_behind(self) -> list[set[int]] | None:
        """The chunks of each file that an earlier pull has brought; None where there was none."""
        found = []
        for file in self.manifest.files:
            path, good = self.directory / file.name, set[int]()
            try:
                latent_file.check_size(path, file)
                for chunk, checksum in enumerate(latent_file.read_checksums(path, file)):
                    if checksum == file.checksums[chunk]:
                        good.add(chunk)
            except (CacheDamaged, OSError):
                return None
            found.append(good)
        log.info("going on with the pull in %s", self.directory)
        return found

    def _cut(self, index: int, file: LatentFile, there: set[int]) -> None:
        """Cut a file into parts, of chunks that all are there, or all are not."""
        most = max(1, PART_BYTES // (file.row_bytes * file.chunk_rows))
        first = 0
        for chunk in range(1, file.num_chunks + 1):
            is_same = chunk < file.num_chunks and (chunk in there) == (first in there)
            if not is_same or chunk - first == most:
                into = self.there if first in there else self.parts
                into.append(Part(index, first, chunk))
                first = chunk

    def rows(self, part: Part) -> range:
        """The trajectories of a part, in its file."""
        file = self.manifest.files[part.file]
        return range(file.chunk(part.first).start, file.chunk(part.end - 1).stop)

    def num_bytes(self, part: Part) -> int:
        return len(self.rows(part)) * self.manifest.files[part.file].row_bytes

    def facts(self, part: Part) -> dict[str, Any]:
        """What the trace says of a fetch: where its bytes are."""
        file, rows = self.manifest.files[part.file], self.rows(part)
        places = [file.data_offset + row * file.row_bytes for row in (rows.start, rows.stop)]
        return {"object": f"{self.uri}/{file.name}", "bytes": places}

    def split(self, part: Part) -> Split:
        return self.manifest.files[part.file].split

    def fetch(self, part: Part) -> memoryview:
        """Fetch chunks, compare them, and store them; what differs is asked for once more.

        Returns: their bytes.
        Raises:
            CacheDamaged: they are not what the manifest says.
            ObjectUnavailable, FetchError: see `Folder`.
        """
        file, rows = self.manifest.files[part.file], self.rows(part)
        start = file.data_offset + rows.start * file.row_bytes
        data = memoryview(bytearray(len(rows) * file.row_bytes))
        name = f"{self.manifest.config_hash}/{self.manifest.generation}/{file.name}"
        with noted("fetch", **self.facts(part)):
            self.remote.folder.read(name, start, data)
        try:
            self._check(part, name, data)
        except CacheDamaged:  # on the way, perhaps
            self.remote.folder.read(name, start, data)
            self._check(part, name, data)
        self.write(part.file, start, data)
        with self._lock:
            self._num_fetched += len(data)
        return data

    def read(self, part: Part) -> memoryview:
        """The bytes of chunks that an earlier pull has brought."""
        file, rows = self.manifest.files[part.file], self.rows(part)
        data = memoryview(bytearray(len(rows) * file.row_bytes))
        start = file.data_offset + rows.start * file.row_bytes
        if missing := read_fully(self._handles[part.file], data, start):
            raise CacheDamaged(f"{self.directory / file.name} ends {missing} bytes early")
        return data

    def write(self, index: int, start: int, data: memoryview) -> None:
        """Write bytes of a file, which the disk begins to take.

        Raises:
            Interrupted: it is closed: its handles may be those of other files by now.
        """
        with self._writing:
            if self._is_closed:
                raise Interrupted("the pull has ended")
            write_fully(self._handles[index], data, start)
            start_writeback(self._handles[index], start, len(data))

    def _check(self, part: Part, name: str, data: memoryview) -> None:
        file, at = self.manifest.files[part.file], 0
        for chunk in range(part.first, part.end):
            end = at + len(file.chunk(chunk)) * file.row_bytes
            found, expected = xxhash.xxh3_64_hexdigest(data[at:end]), file.checksums[chunk]
            if found != expected:
                raise CacheDamaged(
                    f"{self.remote.folder.uri(name)}: chunk {chunk} has checksum {found}, "
                    f"expected {expected}"
                )
            at = end

    def finish(self, manifest: Manifest | None = None) -> Manifest:
        """Have the entry be complete.

        Args:
            manifest: of what is there in the end, where not all of it was pulled.
        """
        for handle in self._handles:
            os.fsync(handle)
        manifest = manifest or self.manifest
        directory = self.directory
        files = tuple(
            file.model_copy(update={"mtime_ns": (directory / file.name).stat().st_mtime_ns})
            for file in manifest.files
        )
        manifest = manifest.model_copy(update={"files": files})
        store.write_manifest(directory, manifest)
        (directory / store.IN_USE_NAME).touch()
        directory.rename(self._entry / manifest.generation)
        sync_directory(self._entry)
        store.publish(self._cache_dir, manifest)
        return manifest

    def drop(self) -> None:
        """Remove what came of it: no other goes on with damaged files."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.directory)

    def close(self) -> None:
        """Close the files, and let go of the entry; the next pull goes on from what is there."""
        with self._writing:
            self._is_closed = True
        self._opened.close()


def num_pulled_at_once() -> int:
    return min(8, 2 * num_cores())


def pull_whole(
    fetching: Pull,
    stop: threading.Event | None = None,
    progress: Progress = lambda _done, _all: None,
) -> Pulled:
    """Bring a whole entry into the cache.

    Raises:
        CacheDamaged: chunks are not what the manifest says; nothing of the entry stays.
        Interrupted: `stop` was set; the next pull goes on from what is there.
        CacheError, DiskFull, OSError, ObjectUnavailable, FetchError: see `begin` and `fetch`.
    """
    total, done, lock = fetching.manifest.num_bytes, 0, threading.Lock()

    def fetch(part: Part) -> None:
        nonlocal done
        data = fetching.fetch(part)
        with lock:
            done += len(data)
            progress(done, total)

    try:
        fetching.begin()
        done = total - sum(map(fetching.num_bytes, fetching.parts))
        at_once(fetch, fetching.parts, num_pulled_at_once(), stop, "the shared cache")
        fetching.finish()
    except CacheDamaged:
        fetching.drop()
        raise
    finally:
        fetching.close()
    pulled = fetching.pulled
    log.info("latents %s %s", fetching.manifest.config_hash, pulled)
    return pulled


def say_miss(uri: str, error: BaseException) -> None:
    """The line about latents that could not be had."""
    log.warning("%s is a miss, the latents are built here: %s", uri, reason_of(error))
