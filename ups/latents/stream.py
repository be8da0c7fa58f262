"""Latents that training reads while their sources still arrive: the streaming start.

A chunk of trajectories is the unit. Once its bytes are there, a worker encodes it, writes it into
the cache entry and into the tensor that training reads, and says so; training waits for the rows of
its next batch alone. The entry counts from the moment on at which all sources have turned out to be
what their digests say, which is before the first checkpoint is written.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ups.background import Background
from ups.config import RunConfig, Split
from ups.data.sources import Staged, check_unchanged
from ups.errors import CannotStream, ChecksumMismatch, DataError, Interrupted
from ups.files import exclusive_lock, lock_holder, lock_now
from ups.latents import store
from ups.latents.arrival import Arrival
from ups.latents.build import Build, CacheEntry, entry_of, say_built
from ups.latents.datasets import Rows, check_alike
from ups.latents.journal import Job
from ups.latents.key import ENCODED_SPLITS, hash_fields, key_fields
from ups.latents.loader import Latents, read_exactly
from ups.latents.prune import keep_to_budget
from ups.latents.scout import cannot_stream, may_stream
from ups.latents.scouted import NothingToFetch, Scouted
from ups.latents.source import Source
from ups.latents.streamed import Room
from ups.machine.devices import encoding_device, limit_torch_threads, own_stream, training_device
from ups.progress import Show
from ups.trace import noted

log = logging.getLogger(__name__)


def stream_latents(
    config: RunConfig, scouted: Scouted, stop: threading.Event, show: Show
) -> Stream | None:
    """Begin to encode what arrives; None where all has to be there first, and the fetch has ended.

    Raises: see `Stream.start`.
    """
    limit_torch_threads()
    stream = Stream(config, scouted, training_device(config), stop, show)
    try:
        stream.start()
    except CannotStream as reason:
        scouted.give_up()
        stream.close()
        if not isinstance(reason, NothingToFetch):
            cannot_stream(config, reason)
        return None
    except BaseException:  # a stop, too
        stream.close()
        raise
    scouted.keep_on()
    return stream


def stream_files(
    config: RunConfig,
    staged: Mapping[str, Mapping[str, Sequence[Staged]]],
    stop: threading.Event,
    show: Show,
) -> tuple[Scouted, Stream] | None:
    """Begin to encode files that are there; None where the entries are, or all has to come first.

    Args:
        staged: problem → split → its sources, of train and val at least.
    Raises: see `Stream.start`.
    """
    if not may_stream(config):
        return None
    try:
        scouted = Scouted.of_files(config, staged, stop)
    except NothingToFetch:
        return None
    stream = stream_latents(config, scouted, stop, show)
    return None if stream is None else (scouted, stream)


@dataclass(slots=True)
class _Chunk:
    """A chunk of a file of a build, and where its trajectories are in the tensor of their split."""

    turn: int
    build: Build
    job: Job
    split: Split
    first: int
    end: int
    source: Source

    @property
    def place(self) -> tuple[int, int]:
        """Where its bytes are in its source."""
        rows = self.build.files[self.job[0]].chunk(self.job[1])
        return self.source.file.bytes_of(rows.start, rows.stop)

    @property
    def facts(self) -> dict[str, Any]:
        """What the trace says of it: `object` and `bytes` of one that is on its way."""
        facts: dict[str, Any] = {
            "split": self.split,
            "rows": [self.first, self.end],
            "turn": self.turn,
        }
        if self.source.coming is not None:
            facts |= {"object": self.source.staged.uri, "bytes": list(self.place)}
        return facts


class Stream:
    """The entries of a run's problems while they are built; used once.

    Use: `start`, from which on training may read `latents`; `result` for what came of it; `close`
    in the end, whatever became of it.
    """

    latents: Latents

    def __init__(
        self, config: RunConfig, scouted: Scouted, device: str, stop: threading.Event, show: Show
    ) -> None:
        self._config, self.scouted, self._device = config, scouted, device
        self._stop, self._show = stop, show
        self._is_over = threading.Event()
        self._started = time.monotonic()
        self._locks = ExitStack()
        self._builds: dict[str, Build] = {}
        self._tensors: dict[Split, Tensor] = {}
        self._ending: Background[dict[str, CacheEntry]] | None = None

    def start(self) -> None:
        """Plan the entries, fit the encoders, and begin to encode what arrives.

        Raises:
            CannotStream: memory has no room for the latents, or another process builds an entry.
            DataError: trajectories do not go together, or those of the fit are not finite.
            DiskFull, FetchError, Interrupted.
        """
        config, started = self._config, time.monotonic()
        self._plan()
        rows = self._rows()
        check_alike(config, rows)
        num_bytes = sum(f.num_bytes for build in self._builds.values() for f in build.files)
        room = Room(config, num_bytes, self._device)
        for build in self._builds.values():
            build.begin()
        self.latents, arrival, self._tensors = room.make(
            rows,
            {name: build.encoder for name, build in self._builds.items()},
            {name: build.fields for name, build in self._builds.items()},
            {name: build.fetches for name, build in self._builds.items()},
            started,
            [source for build in self._builds.values() for source in build.sources],
        )
        self._ending = Background(lambda: self._run(arrival), "build the latents")

    def result(self) -> dict[str, CacheEntry]:
        """Problem → its entry, once all are complete.

        Raises: what ended it before.
        """
        assert self._ending is not None, "start comes before result"
        return self._ending.result()

    def is_done(self, timeout_s: float) -> bool:
        """Whether it has ended, well or not, within this time."""
        return self._ending is None or self._ending.is_done(timeout_s)

    def close(self) -> None:
        """End what goes on; what is encoded and fetched is kept, and the next run goes on there."""
        self._is_over.set()
        self.scouted.halt()
        while not self.is_done(1.0):
            pass
        self.scouted.close()
        self._let_go()

    def _plan(self) -> None:
        """A build for each problem, with the lock of its entry."""
        for name, config in self.scouted.by_problem.items():
            sources: dict[str, list[Staged]] = {
                split: self.scouted.staged(name, split) for split in ENCODED_SPLITS
            }
            fields = key_fields(config, sources)
            files = [
                source.file
                for split in ENCODED_SPLITS
                for source in self.scouted.of_problem(name, split)
            ]
            build = Build(config, sources, fields, encoding_device(config), files)
            if (lock := lock_now(held := build.entry / store.LOCK_NAME)) is None:
                raise CannotStream(f"{lock_holder(held)} builds {build.entry}")
            self._locks.callback(os.close, lock)
            if store.valid_generation(config.training.latent_cache_dir, self.scouted.keys[name]):
                raise NothingToFetch("another process has just built the latents")
            self._builds[name] = build

    def _rows(self) -> dict[Split, list[Rows]]:
        rows: dict[Split, list[Rows]] = {split: [] for split in ENCODED_SPLITS}
        for build in self._builds.values():
            for file in build.files:
                rows[file.split].append(Rows.of_latents(build.config, file))
        return rows

    def _chunks(self) -> list[_Chunk]:
        """All chunks of all builds, in the order in which they arrive."""
        chunks = []
        ends: dict[Split, int] = dict.fromkeys(ENCODED_SPLITS, 0)
        for name, build in self._builds.items():
            sources: list[Source] = [
                s for split in ENCODED_SPLITS for s in self.scouted.of_problem(name, split)
            ]
            for index, (file, source) in enumerate(zip(build.files, sources, strict=True)):
                first = ends[file.split]
                ends[file.split] += file.shape[0]
                for chunk in range(file.num_chunks):
                    rows = file.chunk(chunk)
                    turn = int(source.turns[rows.start : rows.stop].max())
                    place = first + rows.start, first + rows.stop
                    chunks.append(_Chunk(turn, build, (index, chunk), file.split, *place, source))
        return sorted(chunks, key=lambda chunk: chunk.turn)

    def _run(self, arrival: Arrival) -> dict[str, CacheEntry]:
        """Encode all, wait for the verdict on the sources, and have the entries be complete."""
        try:
            self._encode(arrival)
            for build in self._builds.values():
                build.sync()
            sources: dict[str, dict[str, list[Staged]]] = {
                name: {split: self.scouted.finished(name, split) for split in ENCODED_SPLITS}
                for name in self._builds
            }
            for of_problem in sources.values():
                check_unchanged(source for split in ENCODED_SPLITS for source in of_problem[split])
            entries = {name: self._publish(name, sources[name]) for name in self._builds}
            arrival.settle()
            self.scouted.settle()
            return entries
        except BaseException as error:  # whatever it is: the training that waits is told
            self._is_over.set()
            arrival.fail(error)
            if isinstance(error, (DataError, ChecksumMismatch)):
                for build in self._builds.values():  # nothing can go on from bad data
                    store.drop_partial_builds(build.entry)
            raise
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Close the builds' files, and let others have the entries, while training goes on."""
        for build in self._builds.values():
            build.close()
        self._locks.close()

    def _encode(self, arrival: Arrival) -> None:
        chunks = self._chunks()
        total = sum(chunk.end - chunk.first for chunk in chunks)
        show, done = self._show("encoded", "trajectories"), 0
        todo, lock = iter(chunks), threading.Lock()

        def work() -> None:
            try:
                with own_stream(self._device):
                    take_chunks()
            except BaseException:  # whatever it is; raised again to who waits for the workers
                self._is_over.set()  # the others need not go on
                self.scouted.halt()  # nor wait
                raise

        def take_chunks() -> None:
            nonlocal done
            while True:
                if self._stop.is_set() or self._is_over.is_set():
                    raise Interrupted("the streaming start was stopped; the next goes on from here")
                with lock:
                    chunk = next(todo, None)
                if chunk is None:
                    return
                with noted("encode", **chunk.facts):
                    self._fill(chunk)
                if chunk.split == "train":
                    arrival.note(chunk.first, chunk.end)
                with lock:
                    done += chunk.end - chunk.first
                    show(done, total)

        features, training = self._config.features, self._config.training
        num = max(1, training.num_workers) if features.parallel_encode else 1
        workers = [Background(work, f"encode {n}") for n in range(num)]
        errors = [error for worker in workers if (error := worker.error()) is not None]
        if errors:  # what the first was stopped by is told, not that others were stopped for it
            raise next((e for e in errors if not isinstance(e, Interrupted)), errors[0])

    def _fill(self, chunk: _Chunk) -> None:
        """Encode a chunk, or read what an earlier build made of it, to where training reads it."""
        index, number = chunk.job
        file = chunk.build.files[index]
        dtype = getattr(torch, file.dtype)
        if chunk.job in chunk.build.done:
            rows = file.chunk(number)
            stored = bytearray(len(rows) * file.row_bytes)
            offset = file.data_offset + rows.start * file.row_bytes
            read_exactly(chunk.build.directory / file.name, memoryview(stored), offset)
            latents = torch.frombuffer(stored, dtype=dtype)
        else:
            latents = torch.frombuffer(chunk.build.encode(chunk.job), dtype=dtype)
        target = self._tensors[chunk.split][chunk.first : chunk.end]
        stride = self._config.training.time_stride
        target.copy_(latents.view(len(target), *file.shape[1:])[:, ::stride])
        if target.is_cuda:  # training, on another stream, reads it once it is noted
            torch.cuda.current_stream().synchronize()
        if (coming := chunk.source.coming) is not None:
            coming.done_with(*chunk.place)

    def _publish(self, name: str, sources: Mapping[str, Sequence[Staged]]) -> CacheEntry:
        """Have the entry be complete, under the key that its sources have."""
        build = self._builds[name]
        fields = key_fields(build.config, sources)
        if fields == build.fields:
            return self._finish(build)
        self.scouted.keys[name] = key = hash_fields(fields)
        self.latents.key_fields[name] = fields
        cache_dir = build.config.training.latent_cache_dir
        entry = store.entry_dir(cache_dir, key)
        log.info("the cache entry is %s: all of its sources have been hashed", key)
        with exclusive_lock(entry / store.LOCK_NAME, self._is_over):
            if store.valid_generation(cache_dir, key):
                build.drop()
                seconds = time.monotonic() - self._started
                return entry_of(store.open_current(cache_dir, key), reused=True, seconds=seconds)
            build.move_to(entry, fields)
            return self._finish(build)

    def _finish(self, build: Build) -> CacheEntry:
        manifest, cache_dir = build.finish(), build.config.training.latent_cache_dir
        changed = tuple(store.explain_miss(cache_dir, build.fields))
        if changed:
            log.info("cache entry %s is new: %s", manifest.config_hash, "; ".join(changed))
        store.publish(cache_dir, manifest)
        seconds = time.monotonic() - self._started
        entry = entry_of(manifest, reused=False, seconds=seconds, changed=changed)
        say_built(build.config, entry)
        keep_to_budget(build.config, {b.generation for b in self._builds.values()})
        return entry
