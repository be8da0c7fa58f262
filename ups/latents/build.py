"""Build a cache entry once: every worker takes a chunk from source bytes to stored bytes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import xxhash

from ups.background import in_context
from ups.config import Model, ProblemConfig
from ups.data.pdebench import TrajectoryFile
from ups.data.sources import Staged, check_unchanged, fetch_missing, is_untouched, open_file
from ups.errors import CacheDamaged, DataError, Interrupted
from ups.files import (
    exclusive_lock,
    require_free_space,
    start_writeback,
    sync_directory,
    write_fully,
)
from ups.latents import journal, latent_file, store
from ups.latents.chunks import ChunkEncoder
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.journal import Job
from ups.latents.key import ENCODED_SPLITS, hash_fields, key_fields
from ups.latents.prune import keep_to_budget
from ups.latents.store import BUILDING, DAMAGED, Manifest
from ups.progress import Progress
from ups.trace import noted
from ups.units import format_size

log = logging.getLogger(__name__)

CACHE_REMEDY = "set training.latent_cache_dir to a larger disk"


class CacheEntry(Model):
    """Where an entry is, relative to the cache directory, and how it came to be."""

    config_hash: str
    generation: str
    reused: bool
    num_trajectories: int
    num_bytes: int
    seconds: float
    changed: tuple[str, ...] = ()


def ensure(
    config: ProblemConfig,
    sources: Mapping[str, Sequence[Staged]],
    *,
    device: str = "cpu",
    overwrite: bool = False,
    keep: Collection[str] = (),
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    plan: Callable[..., Build] | None = None,
) -> CacheEntry:
    """The cache entry of this config and data: the one that is there, or a new one.

    Args:
        sources: the staged sources of train and val; files that are not here are fetched to build.
        device: where to encode; on a CUDA out-of-memory the batch is halved, then the CPU used.
        keep: generations that no budget removes: of the other problems of the run.
        progress: called with trajectories done and in all.
        plan: makes the build, as `Build` does; default: one by the threads of this process.
    Raises:
        Interrupted: `stop` was set; what is encoded is kept, and the next build goes on from it.
        DataError, DiskFull.
    """
    cache_dir = config.training.latent_cache_dir
    fields = key_fields(config, sources)
    config_hash = hash_fields(fields)
    entry = store.entry_dir(cache_dir, config_hash)
    with exclusive_lock(entry / store.LOCK_NAME, stop):
        started = time.monotonic()
        if overwrite:
            store.drop_partial_builds(entry)
        elif manifest := store.open_or_set_aside(cache_dir, config_hash):
            store.mark_used(entry / manifest.generation)  # no prune takes it before it is loaded
            return entry_of(manifest, reused=True, seconds=time.monotonic() - started)
        changed = store.explain_miss(cache_dir, fields)
        if changed:
            log.info("cache entry %s is new: %s", config_hash, "; ".join(changed))
        build = (plan or Build)(config, fetch_missing(config, sources, stop), fields, device)
        try:
            manifest = build.run(stop or threading.Event(), progress or (lambda _done, _all: None))
        except DataError:
            store.drop_partial_builds(entry)  # there is nothing to resume in a build of bad data
            raise
        store.publish(cache_dir, manifest)
        seconds = time.monotonic() - started
        result = entry_of(manifest, reused=False, seconds=seconds, changed=tuple(changed))
    say_built(config, result)
    keep_to_budget(config, {manifest.generation, *keep})
    return result


def say_built(config: ProblemConfig, built: CacheEntry) -> None:
    """A line about an entry that was built."""
    directory = store.entry_dir(config.training.latent_cache_dir, built.config_hash)
    num, seconds = built.num_trajectories, max(built.seconds, 1e-3)
    log.info(
        "encoded %d trajectories to %s: %s in %.2f s, %.0f trajectories/s, hash=%s",
        num,
        directory / built.generation,
        format_size(built.num_bytes),
        built.seconds,
        num / seconds,
        built.config_hash,
    )


class Build:
    """One build of one generation, in its private directory.

    Use: `run`; or `begin`, then `encode` for each of `jobs`, from any thread, and `finish`. The
    caller holds the entry's lock.

    Args:
        readers: of the sources of train, and of those of val; default: the files are opened.
    Attributes:
        resources: what is open while it is built.
        fetches: what brought the sources' bytes, which may turn out to be others than their SHA-256
            says; what was encoded of them is gone on with by a build of the same bytes alone.
    """

    def __init__(
        self,
        config: ProblemConfig,
        sources: Mapping[str, Sequence[Staged]],
        fields: dict[str, Any],
        device: str,
        readers: Sequence[TrajectoryFile] | None = None,
    ) -> None:
        self.config, self.fields, self.device = config, fields, device
        self.sources = [source for split in ENCODED_SPLITS for source in sources[split]]
        self.fetches = sorted({source.fetch for source in self.sources if source.fetch})
        self.entry = store.entry_dir(config.training.latent_cache_dir, hash_fields(fields))
        self._own: Sequence[TrajectoryFile] = ()
        if readers is None:
            readers = self._own = [open_file(config, s.path, s.rows) for s in self.sources]
        self.readers = readers
        names = [f"{split}_{i:03d}" for split in ENCODED_SPLITS for i in range(len(sources[split]))]
        self.files = [
            latent_file.plan_file(config, reader, name, source.split)
            for reader, name, source in zip(readers, names, self.sources, strict=True)
        ]
        self.done: dict[Job, str] = {}
        self._lock = threading.Lock()
        self.resources = ExitStack()

    def run(self, stop: threading.Event, progress: Progress) -> Manifest:
        total = sum(file.shape[0] for file in self.files)
        with self.resources:
            self.begin()
            finished = sum(len(self.files[index].chunk(chunk)) for index, chunk in self.done)
            progress(finished, total)

            def count(job: Job) -> None:
                nonlocal finished
                with self._lock:
                    finished += len(self.files[job[0]].chunk(job[1]))
                    progress(finished, total)

            self._encode_all(stop, count)
            self.sync()
        check_unchanged(self.sources)
        return self.finish()

    def begin(self) -> None:
        """Go on with a build that was cut short, or start a new one: fit the encoder.

        Raises:
            DataError: the rows that it is fitted to are not finite.
            DiskFull: there is no room for the entry.
        """
        self.directory, self.encoder, self.done = self._resume() or self._start()
        enter = self.resources.enter_context
        self._chunks = enter(ChunkEncoder(self.config, self.encoder, self.device))
        self._notes = enter((self.directory / journal.NAME).open("a", buffering=1))
        self._handles = [
            enter((self.directory / file.name).open("r+b", buffering=0)).fileno()
            for file in self.files
        ]
        for reader in self._own:
            enter(reader)

    @property
    def generation(self) -> str:
        """What the build is called in the end."""
        return self.directory.name.removeprefix(BUILDING)

    def jobs(self) -> list[Job]:
        """The chunks that are to be encoded."""
        every = [(i, c) for i, file in enumerate(self.files) for c in range(file.num_chunks)]
        return [job for job in every if job not in self.done]

    def encode(self, job: Job) -> memoryview:
        """Encode a chunk and store it.

        Returns:
            Its bytes as stored, which hold until the calling thread encodes its next chunk.
        """
        index, chunk = job
        rows = self.files[index].chunk(chunk)
        data = self._chunks.encode(self.readers[index], rows.start, rows.stop)
        self.write(job, data)
        self.note(job, xxhash.xxh3_64_hexdigest(data))
        return data

    def write(self, job: Job, data: memoryview) -> None:
        """Write the latents of a chunk into their place in their file."""
        file, handle = self.files[job[0]], self._handles[job[0]]
        offset = file.data_offset + file.chunk(job[1]).start * file.row_bytes
        write_fully(handle, data, offset)
        start_writeback(handle, offset, len(data))

    def note(self, job: Job, checksum: str) -> None:
        """Take a chunk as done, in the journal, too: its bytes are in their place."""
        with self._lock:
            self.done[job] = checksum
            if is_untouched(self.sources[job[0]]):  # else another build must not trust it
                self._notes.write(journal.line(job, checksum))

    def sync(self) -> None:
        """Have all chunks on the disk."""
        for handle in self._handles:
            os.fsync(handle)

    def close(self) -> None:
        """Close the files; what is encoded is kept, and the next build goes on from it."""
        self.resources.close()

    def move_to(self, entry: Path, fields: dict[str, Any]) -> None:
        """Go on as the build of another key, whose lock is held: before, it was not known."""
        moved = self.directory.rename(entry / self.directory.name)
        store.remove_empty(self.entry)
        self.directory, self.entry, self.fields = moved, entry, fields

    def drop(self) -> None:
        """Remove it: its entry is there."""
        shutil.rmtree(self.directory)
        store.remove_empty(self.entry)

    def _encode_all(self, stop: threading.Event, count: Callable[[Job], None]) -> None:
        """Encode what is not done yet; a fault, or Ctrl-C, ends the workers at their chunk.

        Args:
            count: called with each chunk that is done.
        """

        def work(job: Job) -> None:
            if stop.is_set():
                raise Interrupted("the cache build was stopped; a new one goes on from here")
            with noted("encode", file=self.files[job[0]].name, chunk=job[1]):
                self.encode(job)
            count(job)

        jobs = self.jobs()
        workers = self.config.training.num_workers if self.config.features.parallel_encode else 0
        if workers <= 1:
            for job in jobs:
                work(job)
            return
        ended = threading.Event()

        def guarded(job: Job) -> None:
            if not ended.is_set():
                work(job)

        with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
            try:
                for _ in pool.map(in_context(guarded), jobs):
                    pass
            finally:
                ended.set()

    def _start(self) -> tuple[Path, PatchEncoder, dict[Job, str]]:
        store.drop_partial_builds(self.entry)
        needed = sum(file.file_bytes for file in self.files)
        what = f"the latent cache of {self.config.name}"
        require_free_space(self.entry, needed, what, CACHE_REMEDY)
        planned = zip(self.readers, self.files, strict=True)
        encoder = fit_encoder(self.config, [r for r, file in planned if file.split == "train"])
        check_unchanged(self.sources)  # a build that is killed leaves the encoder to the next one
        directory = self.entry / f"{BUILDING}{store.new_generation()}"
        directory.mkdir()
        for file in self.files:
            with (directory / file.name).open("wb") as handle:
                handle.write(file.header)
                os.posix_fallocate(handle.fileno(), 0, file.file_bytes)
        journal.begin(directory, self._plan(encoder))
        return directory, encoder, {}

    def _resume(self) -> tuple[Path, PatchEncoder, dict[Job, str]] | None:
        """A build that was killed, if it was of the same files: its finished chunks, re-checked."""
        for directory in sorted(self.entry.glob(f"{BUILDING}*")):
            if not (directory / journal.NAME).exists():  # it was killed before its first chunk
                continue
            try:
                plan, noted = journal.read(directory)
                encoder = PatchEncoder.from_manifest(plan["encoder"])
                if plan != json.loads(json.dumps(self._plan(encoder))):
                    continue
                done = self._verify(directory, noted)
            except (CacheDamaged, OSError, ValueError, LookupError, TypeError) as error:
                aside = directory.with_name(directory.name.replace(BUILDING, DAMAGED))
                directory.rename(aside)
                log.warning("a partial build cannot go on: %s; moved to %s", error, aside)
                continue
            log.info("resuming %s: %d chunks are done", directory, len(done))
            return directory, encoder, done
        return None

    def _verify(self, directory: Path, noted: Mapping[Job, str]) -> dict[Job, str]:
        """Those of the noted chunks that are on the disk as they were written.

        Raises:
            CacheDamaged: a file is not the one that was begun.
        """
        done: dict[Job, str] = {}
        for index, file in enumerate(self.files):
            path = directory / file.name
            latent_file.check_size(path, file)
            with latent_file.open_latents(path, file) as handle:
                for chunk in range(file.num_chunks):
                    checksum = noted.get((index, chunk))
                    if checksum and latent_file.read_checksum(handle, file, chunk) == checksum:
                        done[index, chunk] = checksum
        return done

    def _plan(self, encoder: PatchEncoder) -> dict[str, Any]:
        return {
            "key_fields": self.fields,
            "files": [file.model_dump() for file in self.files],
            "encoder": encoder.to_manifest(),
            "fetches": self.fetches,
        }

    def finish(self) -> Manifest:
        """Write the manifest of what is encoded in full, and give the generation its name."""
        directory, encoder, done = self.directory, self.encoder, self.done
        files = tuple(
            file.model_copy(
                update={
                    "checksums": tuple(done[i, c] for c in range(file.num_chunks)),
                    "mtime_ns": (directory / file.name).stat().st_mtime_ns,
                }
            )
            for i, file in enumerate(self.files)
        )
        manifest = Manifest(
            config_hash=hash_fields(self.fields),
            key_fields=self.fields,
            generation=self.generation,
            generated_at=time.time(),
            encoder=encoder.to_manifest(),
            files=files,
            fetches=tuple(self.fetches),
        )
        store.write_manifest(directory, manifest)
        (directory / journal.NAME).unlink()
        (directory / store.IN_USE_NAME).touch()
        directory.rename(self.entry / manifest.generation)
        sync_directory(self.entry)
        return manifest


def entry_of(manifest: Manifest, **how: Any) -> CacheEntry:
    return CacheEntry(
        config_hash=manifest.config_hash,
        generation=manifest.generation,
        num_trajectories=sum(file.shape[0] for file in manifest.files),
        num_bytes=manifest.num_bytes,
        **how,
    )
