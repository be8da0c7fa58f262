"""What a cold run is made of, before it is there: headers, cache keys, and the order of arrival.

Nothing here imports torch: the first bytes are on their way while it is being imported.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Self

import numpy as np

from ups.background import Background, at_once
from ups.config import SPLITS, ProblemConfig, RunConfig, Split
from ups.data.coming import ComingObject
from ups.data.frames import check_frames_alike
from ups.data.letting_go import Backlog
from ups.data.objectstore import ObjectStore
from ups.data.pdebench import locate
from ups.data.ranges import start_fetching
from ups.data.sources import MOST_ASKED, Staged, Wanted, as_stored, open_file, stage_one, wanted
from ups.data.transfer import Download
from ups.errors import CacheDamaged, CannotStream, Interrupted
from ups.latents import journal
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.order import fit_rows
from ups.latents.source import Source, give_turns, reading, what_is_needed, what_is_wanted
from ups.latents.store import BUILDING, entry_dir, valid_generation
from ups.machine.cgroup import num_cores
from ups.progress import Progress, Show

PROGRESS_S = 0.2


class NothingToFetch(CannotStream):
    """Raised where there is nothing to wait for."""


class Scouted:
    """The sources of a run that has something to encode, and perhaps to fetch before.

    Attributes:
        sources: of each split, problem after problem.
        keys: problem → its cache key.
        is_given_up: whether all has to be there first after all.
    """

    def __init__(self, config: RunConfig, stop: threading.Event) -> None:
        self.config, self._stop = config, stop
        self.is_given_up, self._is_decided = False, threading.Event()
        self.by_problem = config.by_problem()
        self.sources: dict[Split, list[Source]] = {split: [] for split in SPLITS}
        self.keys: dict[str, str] = {}
        self._objects: dict[tuple[str, str], ComingObject] = {}
        self._verdicts: dict[int, Background[Download]] = {}

    @classmethod
    def of_store(cls, config: RunConfig, store: ObjectStore, stop: threading.Event) -> Self:
        """Ask for headers and digests; nothing else is fetched yet.

        Raises:
            NothingToFetch: all files are there, or their latents.
            CannotStream: files have to be there before they can be read.
            DataError, ObjectUnavailable, FetchError: the run would fail with it in any case.
        """
        scouted = cls(config, stop)
        all_wanted = {
            (name, split): wanted(own, split)
            for split in SPLITS
            for name, own in scouted.by_problem.items()
        }
        encoded = [w for (_, split), of in all_wanted.items() if split != "test" for w in of]
        if all(source.path.exists() for source in encoded):
            raise NothingToFetch("all files are there")
        try:
            scouted._ask_for_objects(store, [w for of in all_wanted.values() for w in of])
            for (name, split), of in all_wanted.items():
                own = scouted.by_problem[name]
                scouted.sources[split] += [scouted._open(own, source, store) for source in of]
            for name, own in scouted.by_problem.items():
                sources = {str(split): scouted.staged(name, split) for split in ENCODED_SPLITS}
                scouted.keys[name] = compute_cache_hash(own, sources)
            scouted._refuse_what_is_there()
            scouted._plan()
        except BaseException:  # a stop, too
            scouted.close()
            raise
        return scouted

    @classmethod
    def of_files(
        cls,
        config: RunConfig,
        staged: Mapping[str, Mapping[str, Sequence[Staged]]],
        stop: threading.Event,
    ) -> Self:
        """Files that are there and have to be encoded.

        Args:
            staged: problem → split → its sources; test may be missing.
        Raises:
            NothingToFetch: their latents are there, or were so, and the files are not.
            DataError: see `TrajectoryFile`.
        """
        scouted = cls(config, stop)
        for name, own in scouted.by_problem.items():
            scouted.keys[name] = compute_cache_hash(own, staged[name])
        scouted._refuse_what_is_there()
        if not all(s.is_here for of in staged.values() for each in of.values() for s in each):
            raise NothingToFetch("what has to be encoded is fetched before")
        try:
            for name, own in scouted.by_problem.items():
                for split in SPLITS:
                    for source in staged[name].get(split, ()):
                        file = open_file(own, source.path, source.rows)
                        turns = np.zeros(file.num_trajectories, np.int64)
                        scouted.sources[split].append(Source(own, source, file, None, turns))
            scouted._plan()
        except BaseException:  # a stop, too: nobody else has the files to close
            scouted.close()
            raise
        return scouted

    def _refuse_what_is_there(self) -> None:
        cache_dir = self.config.training.latent_cache_dir
        if any(valid_generation(cache_dir, key) for key in self.keys.values()):
            raise NothingToFetch("latents are in the cache")

    def _plan(self) -> None:
        for of_split in self.sources.values():
            frames = [(source.staged.uri, source.file.num_frames) for source in of_split]
            check_frames_alike(self.config, frames)
        give_turns(self.sources, self.config.training.seed)

    def _ask_for_objects(self, store: ObjectStore, sources: Sequence[Wanted]) -> None:
        missing = {
            (source.bucket or "", source.key or ""): source
            for source in sources
            if source.bucket is not None and source.key is not None and not source.path.exists()
        }

        def ask(place: tuple[str, str]) -> None:
            self._objects[place] = ComingObject(store, *place, missing[place].path)

        at_once(ask, list(missing), MOST_ASKED, self._stop, "the object store")

    def _open(self, config: ProblemConfig, source: Wanted, store: ObjectStore) -> Source:
        coming = self._objects.get((source.bucket or "", source.key or ""))
        if coming is None:
            staged = stage_one(config, source, store, stop=self._stop)
        else:
            staged = as_stored(source, coming.sha256, coming.num_bytes, is_here=True)
        file = open_file(config, source.path, source.rows, coming)
        parameter = file.parameter if file.is_named else None
        is_verified = staged.is_verified if coming is None else coming.info.is_verifiable
        staged = staged.model_copy(update={"parameter": parameter, "is_verified": is_verified})
        return Source(config, staged, file, coming, np.zeros(file.num_trajectories, np.int64))

    def of_problem(self, name: str, split: Split) -> list[Source]:
        return [source for source in self.sources[split] if source.problem.problem.name == name]

    def staged(self, name: str, split: Split) -> list[Staged]:
        return [source.staged for source in self.of_problem(name, split)]

    def _note_fetches(self) -> None:
        for source in (source for of in self.sources.values() for source in of):
            if source.coming is not None:
                source.staged = source.staged.model_copy(update={"fetch": source.coming.token})

    @property
    def objects(self) -> list[ComingObject]:
        """What is on its way, each once: that of train before that of val, and of test."""
        read = [source.coming for of in self.sources.values() for source in of if source.coming]
        return list({id(coming): coming for coming in (*read, *self._objects.values())}.values())

    def begin(self, show: Show) -> None:
        """Start to fetch, in the order in which the run needs it, and to hash behind that.

        Raises:
            CannotStream: another process is fetching one of the files.
            DiskFull: there is no room for them.
        """
        num_threads = min(8, 2 * num_cores())
        if not self.config.features.parallel_downloads:
            num_threads = 1
        keep, backlog, fit = self.config.data.keep_sources, Backlog(), self._fit_rows()
        for coming in self.objects:
            letting_go = None if keep else what_is_needed(coming, self.sources, backlog)
            coming.plan(what_is_wanted(coming, self.sources, fit), num_threads, letting_go)
            # Else a build that is cut short could not be found by the key that it has up to then.
            is_encoded = reading(coming, self.sources, ENCODED_SPLITS) != []
            coming.is_held = coming.info.sha256 is None and is_encoded
        self._note_fetches()
        self._skip_what_is_encoded()
        start_fetching([coming.begin() for coming in self.objects], num_threads)
        for coming in self.objects:
            progress = show(f"[{self._label(coming)}] fetched", "MB", 1e6)
            verdict = functools.partial(coming.verdict, self._stop, progress)
            self._verdicts[id(coming)] = Background(verdict, f"hash {coming.path.name}")

    def _fit_rows(self) -> list[tuple[Source, int]]:
        """The rows that the encoders are fitted to, with the source that each is in."""
        found = []
        for name, config in self.by_problem.items():
            if config.encoder.kind == "identity":
                continue
            of_train = self.of_problem(name, "train")
            ends = list(accumulate(source.file.num_trajectories for source in of_train))
            for row in fit_rows(config, ends[-1])[0].tolist():
                which, place = locate(np.array(ends), row)
                found.append((of_train[which], place))
        return found

    def _skip_what_is_encoded(self) -> None:
        """Do not fetch again what was let go once it was encoded."""
        goes_on = {name: self._goes_on(name) for name in self.by_problem}
        for coming in self.objects:
            encoded = reading(coming, self.sources, ENCODED_SPLITS)
            if all(goes_on[source.problem.problem.name] for source in encoded):
                coming.skip_gone()

    def _goes_on(self, name: str) -> bool:
        """Whether there is a build of a problem that was cut short, of these very bytes."""
        staged = [source for split in ENCODED_SPLITS for source in self.staged(name, split)]
        fetches = sorted({source.fetch for source in staged if source.fetch})
        entry = entry_dir(self.config.training.latent_cache_dir, self.keys[name])
        for directory in entry.glob(f"{BUILDING}*"):
            with contextlib.suppress(CacheDamaged):
                if journal.read(directory)[0].get("fetches") == fetches:
                    return True
        return False

    def settle(self) -> None:
        """Have train and val at their place, or let go of them: all is verified and encoded."""
        for coming in self.objects:
            if reading(coming, self.sources, ENCODED_SPLITS):
                coming.settle()

    def remove_let_go(self) -> None:
        """Remove what is left of objects that are not to be kept: nobody needs any of it."""
        for coming in self.objects:
            coming.remove()

    def wait(self) -> None:
        """Return when all objects are there and verified; raises as `finished`."""
        for verdict in self._verdicts.values():
            verdict.result()

    def so_far(self) -> dict[tuple[str, Split], list[Staged]]:
        """(problem, split) → its sources, with the bytes of them that have arrived."""
        return {
            (name, split): [self._so_far(source) for source in sources]
            for name in self.by_problem
            for split in SPLITS
            if (sources := self.of_problem(name, split))
        }

    def _so_far(self, source: Source) -> Staged:
        if (coming := source.coming) is None:
            return source.staged
        update = {
            "fetched_bytes": coming.num_fetched if self._is_first(source) else 0,
            "seconds": time.perf_counter() - coming.started,
        }
        return source.staged.model_copy(update=update)

    def _is_first(self, source: Source) -> bool:
        """Whether no split before it reads the same object, whose bytes count once."""
        return source is next(
            s for of in self.sources.values() for s in of if s.coming is source.coming
        )

    def finished(
        self, name: str, split: Split, progress: Progress = lambda _done, _all: None
    ) -> list[Staged]:
        """The sources of a split of a problem, once all of them are there and verified.

        Args:
            progress: called now and then with the bytes that are there, and all.
        Raises:
            ChecksumMismatch: one is not what its manifest says.
            FetchError, …: see `ComingObject.verdict`.
            Interrupted: that, or they were left to downloads after all.
        """
        sources = self.of_problem(name, split)
        coming = {id(source.coming): source.coming for source in sources if source.coming}
        total = sum(found.num_bytes for found in coming.values())
        for verdict in (self._verdicts[which] for which in coming):
            while not verdict.is_done(PROGRESS_S):
                progress(sum(found.num_arrived for found in coming.values()), total)
            verdict.result()
        progress(total, total)
        if any(found.is_held or found.lets_go for found in coming.values()):
            self._is_decided.wait()  # only what is read as it comes stays aside
            if self.is_given_up:
                raise Interrupted("all has to be there first: it is fetched before it is read")
        return [self._finished(source) for source in sources]

    def _finished(self, source: Source) -> Staged:
        if source.coming is None:
            return source.staged
        done = self._verdicts[id(source.coming)].result()
        update = {
            "fetched_bytes": done.num_bytes - done.resumed_bytes if self._is_first(source) else 0,
            "seconds": done.seconds,
            "state": source.coming.state,
            "path": done.path,
            "sha256": done.sha256,
        }
        return source.staged.model_copy(update=update)

    def _label(self, coming: ComingObject) -> str:
        """The first split of an object, after the name of its problem where there are several."""
        source = next(s for of in self.sources.values() for s in of if s.coming is coming)
        return self.config.data.label(source.problem.problem, source.staged.split)

    def keep_on(self) -> None:
        """They are read as they come: nobody gives up any more."""
        self._is_decided.set()

    def give_up(self) -> None:
        """Leave the rest to downloads, which go on from what has arrived."""
        self.is_given_up = True
        self.close()

    def halt(self) -> None:
        """Stop what is on its way, and whoever waits for it; files may still be read."""
        for coming in self.objects:
            coming.close()

    def close(self) -> None:
        """Stop what is on its way; the next run goes on from what has arrived.

        Nobody reads the files any more.
        """
        self._is_decided.set()
        self.halt()
        for of_split in self.sources.values():
            for source in of_split:
                source.file.close()
