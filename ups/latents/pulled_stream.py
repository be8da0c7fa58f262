"""Latents of the shared cache that training reads while they are pulled.

They come in the order in which the first epoch meets them. A chunk counts once it is compared with
its checksum, and is then in the tensor that training reads and in the entry on this machine. Where
something is wrong with what is left, that is fetched as fields and encoded here, by the encoder of
the entry: what is trained on is the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from ups.background import Background, at_once
from ups.config import ProblemConfig, RunConfig, Split
from ups.data.sources import check_unchanged, fetch_missing, open_files
from ups.errors import CannotStream, DataError, Interrupted, UpsError
from ups.latents import store
from ups.latents.arrival import Arrival
from ups.latents.build import CacheEntry, entry_of, say_built
from ups.latents.chunks import ChunkEncoder
from ups.latents.datasets import Rows, check_alike
from ups.latents.encode import PatchEncoder
from ups.latents.key import ENCODED_SPLITS
from ups.latents.loader import Latents
from ups.latents.order import arrival_turns
from ups.latents.prune import keep_to_budget
from ups.latents.pull import Part, Pull, num_pulled_at_once
from ups.latents.scout import cannot_stream
from ups.latents.sharing import Hits, Sharing
from ups.latents.store import Manifest
from ups.latents.streamed import Room
from ups.machine.devices import encoding_device, limit_torch_threads, own_stream, training_device
from ups.progress import Show
from ups.trace import noted

log = logging.getLogger(__name__)


def stream_pulled(
    config: RunConfig, sharing: Sharing, hits: Hits, stop: threading.Event, show: Show
) -> PulledStream | None:
    """Begin to pull what training reads as it comes; None where all of it is here by now, or none.

    Raises: see `PulledStream.start`.
    """
    limit_torch_threads()
    stream = PulledStream(config, sharing, hits, training_device(config), stop, show)
    try:
        stream.start()
    except CannotStream as reason:
        stream.close()
        cannot_stream(config, reason)
        for name, own in config.by_problem().items():
            sharing.pull_one(hits, name, own, stop, show)
        return None
    except BaseException:  # a stop, too
        stream.close()
        raise
    return stream


class _Place(NamedTuple):
    """A part of a pull, when it is wanted, and where it goes in the tensor of its split."""

    turn: int
    problem: str
    part: Part
    split: Split
    first: int
    end: int


class PulledStream:
    """The entries of a run's problems while they are pulled; used once, as `Stream` is."""

    latents: Latents

    def __init__(
        self,
        config: RunConfig,
        sharing: Sharing,
        hits: Hits,
        device: str,
        stop: threading.Event,
        show: Show,
    ) -> None:
        self._config, self._sharing, self.hits, self._device = config, sharing, hits, device
        self._stop, self._show = stop, show
        self._is_over = threading.Event()
        self._started = time.monotonic()
        self._pulls: dict[str, Pull] = {}
        self._tensors: dict[Split, Tensor] = {}
        self._ending: Background[dict[str, CacheEntry]] | None = None

    def start(self) -> None:
        """Make room for the entries, and begin to pull.

        Raises:
            CannotStream: memory or the disk has no room for them, or another process builds one.
            DataError: trajectories of several problems do not go together.
        """
        config, manifests, started = self._config, self.hits.manifests, time.monotonic()
        by_problem = config.by_problem()
        rows: dict[Split, list[Rows]] = {
            split: [
                Rows.of_latents(own, file)
                for name, own in by_problem.items()
                for file in manifests[name].of_split(split)
            ]
            for split in ENCODED_SPLITS
        }
        check_alike(config, rows)
        num_bytes = sum(manifest.num_bytes for manifest in manifests.values())
        room = Room(config, num_bytes, self._device)
        for name in by_problem:
            pull = Pull(self.hits.remote, manifests[name], config.training.latent_cache_dir)
            self._pulls[name] = pull
            try:
                pull.begin()
            except (UpsError, OSError) as error:
                raise CannotStream(str(error)) from error
        self.latents, arrival, self._tensors = room.make(
            rows,
            {name: PatchEncoder.from_manifest(m.encoder) for name, m in manifests.items()},
            {name: manifest.key_fields for name, manifest in manifests.items()},
            {name: list(manifest.fetches) for name, manifest in manifests.items()},
            started,
        )
        self._sharing.hits = self.hits
        self._ending = Background(lambda: self._run(arrival), "pull the latents")

    def result(self) -> dict[str, CacheEntry]:
        """Problem → its entry, once all are complete.

        Raises: what ended it before.
        """
        assert self._ending is not None, "start comes before result"
        return self._ending.result()

    def close(self) -> None:
        """End what goes on; what was pulled is kept, and the next run goes on there."""
        self._is_over.set()
        if self._ending is not None:
            self._ending.error()  # once it has ended
        for pull in self._pulls.values():
            pull.close()
        self.hits.is_over.set()

    def _places(self) -> list[_Place]:
        """All parts of all pulls, in the order in which they are wanted."""
        num_train = len(self._tensors["train"])
        turns = {"train": arrival_turns(num_train, self._config.training.seed)}
        places, ends = [], dict.fromkeys(ENCODED_SPLITS, 0)
        for name, pull in self._pulls.items():
            firsts = []
            for file in pull.manifest.files:
                firsts.append(ends[file.split])
                ends[file.split] += file.shape[0]
            for part in (*pull.parts, *pull.there):
                rows, split = pull.rows(part), pull.split(part)
                first, end = firsts[part.file] + rows.start, firsts[part.file] + rows.stop
                turn = int(turns[split][first:end].min()) if split in turns else num_train
                places.append(_Place(turn, name, part, split, first, end))
        return sorted(places, key=lambda place: place.turn)

    def _run(self, arrival: Arrival) -> dict[str, CacheEntry]:
        """Pull all, or build what is left, and have the entries be complete."""
        try:
            faulty: dict[str, list[_Place]] = {}
            left = self._places()
            while left:
                left, fault = self._take(left, arrival)
                if fault is not None:
                    name, error = fault
                    self._sharing.note_fault(self._pulls[name], error)
                    faulty[name] = [place for place in left if place.problem == name]
                    left = [place for place in left if place.problem != name]
            self.hits.is_over.set()
            entries: dict[str, CacheEntry] = {}
            for name, pull in self._pulls.items():
                own = self._config.by_problem()[name]
                if name in faulty:
                    manifest = self._build_rest(own, name, faulty[name], arrival)
                else:
                    manifest = pull.finish()
                    self._sharing.pulled[name] = pull.pulled
                    log.info("latents %s %s", manifest.config_hash, pull.pulled)
                seconds = time.monotonic() - self._started
                entries[name] = entry_of(manifest, reused=name not in faulty, seconds=seconds)
                if name in faulty:
                    say_built(own, entries[name])
                keep_to_budget(own, {entry.generation for entry in entries.values()})
                pull.close()
            arrival.settle()
            return entries
        except BaseException as error:  # whatever it is: the training that waits is told
            arrival.fail(error)
            if isinstance(error, DataError):
                for pull in self._pulls.values():
                    pull.drop()
            raise
        finally:
            self._is_over.set()
            self.hits.is_over.set()
            for pull in self._pulls.values():
                pull.close()

    def _take(
        self, places: Sequence[_Place], arrival: Arrival
    ) -> tuple[list[_Place], tuple[str, BaseException] | None]:
        """Pull them in order; those that are not here in the end, whose fault it is, and why."""
        left, todo, lock = set(places), iter(places), threading.Lock()
        total, faults = self.latents.num_bytes, list[tuple[str, BaseException]]()
        done, show = (
            total - sum(self._num_bytes(p) for p in places),
            self._show("pulled", "MB", 1e6),
        )
        there = {(name, part) for name, pull in self._pulls.items() for part in pull.there}

        def take(place: _Place) -> None:
            nonlocal done
            pull, part = self._pulls[place.problem], place.part
            facts = {"split": place.split, "rows": [place.first, place.end], "turn": place.turn}
            with noted("pull", **facts, **pull.facts(part)):
                data = pull.read(part) if (place.problem, part) in there else pull.fetch(part)
                self._fill(place, data, arrival)
            with lock:
                left.discard(place)
                done += len(data)
                show(done, total)

        def work() -> None:
            with own_stream(self._device):
                while not self._is_ended() and not faults:
                    with lock:
                        place = next(todo, None)
                    if place is None:
                        return
                    try:
                        take(place)
                    except (UpsError, OSError) as error:
                        faults.append((place.problem, error))

        workers = [Background(work, f"pull {n}") for n in range(num_pulled_at_once())]
        while not all(worker.is_done(0.05) for worker in workers):
            self._check_stop()  # who is asked to end waits for no answer of a store
        self._check_stop()
        for worker in workers:
            worker.result()
        return [place for place in places if place in left], next(iter(faults), None)

    def _num_bytes(self, place: _Place) -> int:
        return self._pulls[place.problem].num_bytes(place.part)

    def _is_ended(self) -> bool:
        return self._stop.is_set() or self._is_over.is_set()

    def _check_stop(self) -> None:
        if self._is_ended():
            raise Interrupted("the pull was stopped; the next one goes on from here")

    def _fill(self, place: _Place, data: memoryview, arrival: Arrival) -> None:
        """Have training read a part."""
        file = self._pulls[place.problem].manifest.files[place.part.file]
        target = self._tensors[place.split][place.first : place.end]
        latents = torch.frombuffer(data, dtype=getattr(torch, file.dtype))
        stride = self._config.training.time_stride
        target.copy_(latents.view(len(target), *file.shape[1:])[:, ::stride])
        if target.is_cuda:  # training, on another stream, reads it once it is noted
            torch.cuda.current_stream().synchronize()
        if place.split == "train":
            arrival.note(place.first, place.end)

    def _build_rest(
        self, own: ProblemConfig, name: str, places: Sequence[_Place], arrival: Arrival
    ) -> Manifest:
        """Fetch the fields, encode what could not be pulled, and have that be an entry of our own.

        Raises:
            DataError, FetchError, DiskFull, Interrupted, …: as a build would.
        """
        pull, sources = self._pulls[name], self.hits.sources[name]
        here = fetch_missing(own, sources, self._is_over)
        self.hits.sources[name] = {split: list(of) for split, of in here.items()}
        staged = [source for split in ENCODED_SPLITS for source in here[split]]
        checksums = [list(file.checksums) for file in pull.manifest.files]
        with ExitStack() as opened:
            readers = [opened.enter_context(file) for file in open_files(own, staged)]
            encoder = self.latents.encoders[name]
            chunks = opened.enter_context(ChunkEncoder(own, encoder, encoding_device(own)))

            def encode(place: _Place) -> None:
                self._check_stop()
                file, rows = pull.manifest.files[place.part.file], pull.rows(place.part)
                parts = []
                for chunk in range(place.part.first, place.part.end):
                    of_chunk = file.chunk(chunk)
                    with noted("encode", file=file.name, chunk=chunk):
                        data = chunks.encode(
                            readers[place.part.file], of_chunk.start, of_chunk.stop
                        )
                    checksums[place.part.file][chunk] = xxhash.xxh3_64_hexdigest(data)
                    parts.append(bytes(data))
                whole = memoryview(bytearray().join(parts))
                pull.write(place.part.file, file.data_offset + rows.start * file.row_bytes, whole)
                with own_stream(self._device):
                    self._fill(place, whole, arrival)

            num = own.training.num_workers if own.features.parallel_encode else 1
            at_once(encode, places, max(1, num), self._is_over, "the encoder")
        check_unchanged(staged)
        files = tuple(
            file.model_copy(update={"checksums": tuple(of)})
            for file, of in zip(pull.manifest.files, checksums, strict=True)
        )
        fetches = {*pull.manifest.fetches, *(source.fetch for source in staged if source.fetch)}
        return pull.finish(
            pull.manifest.model_copy(
                update={
                    "generation": store.new_generation(),
                    "generated_at": time.time(),
                    "files": files,
                    "fetches": tuple(sorted(fetches)),
                }
            )
        )
