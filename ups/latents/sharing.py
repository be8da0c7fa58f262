"""What one run has to do with the shared cache: look there, pull what is there, push what is not.

Whatever is wrong there is a miss, and a line in the log. Nothing here imports torch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ups.background import at_once
from ups.config import ProblemConfig, RunConfig, Split
from ups.data.s3errors import ObjectChanged, answer
from ups.data.sources import MOST_ASKED, Staged, Wanted, wanted
from ups.errors import CacheDamaged, Interrupted, UpsError
from ups.latents.cached import Cached, as_known, is_of
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.prune import keep_to_budget
from ups.latents.pull import Pull, Pulled, pull_whole, say_miss
from ups.latents.remote import Remote
from ups.latents.store import Manifest
from ups.units import format_size

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore
    from ups.progress import Show

log = logging.getLogger(__name__)

WATCH_S = 0.05


@dataclass(slots=True)
class Hits:
    """Problems whose latents are in the shared cache, while their files are not here.

    Attributes:
        sources: problem → those of train and of val, by what the bucket's manifest says of them.
        keys: problem → the key of its entry.
        is_over: set once nothing is pulled any more, or nothing is going to be.
    """

    remote: Remote
    manifests: dict[str, Manifest] = field(default_factory=dict)
    sources: dict[str, dict[str, list[Staged]]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)

    def so_far(self) -> dict[tuple[str, Split], list[Staged]]:
        """(problem, split) → its sources; those of test are none's yet."""
        return {
            (name, split): of_problem[split]
            for name, of_problem in self.sources.items()
            for split in ENCODED_SPLITS
        }

    def remove_let_go(self) -> None:
        """Nothing that was fetched is let go; see `Scouted`."""

    def close(self) -> None:
        """Nothing is pulled any more."""
        self.is_over.set()

    def wait_until_over(self, stop: threading.Event) -> None:
        """Leave the line to what is pulled.

        Raises:
            Interrupted: `stop` was set.
        """
        while not self.is_over.wait(WATCH_S):
            if stop.is_set():
                raise Interrupted("stopped while waiting for the latents that are pulled")


class Sharing:
    """The shared cache of a run, where its config names one.

    Attributes:
        pulled: problem → where its entry came from, once all of it has come.
        hits: what is being pulled while it is trained on; None before, and without.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.pulled: dict[str, Pulled] = {}
        self.hits: Hits | None = None
        self._damaged: dict[str, str] = {}

    def find(
        self, store: ObjectStore, stop: threading.Event, except_of: Collection[str] = ()
    ) -> Hits:
        """The problems whose entries are there; their cache keys are made of the manifests alone.

        Where the files are here nothing is looked for: to encode them is faster than a network.

        Args:
            except_of: problems whose entries are here.
        """
        hits, features = Hits(Remote.opened(self.config, store)), self.config.features
        if features.stream == "off" or features.preload == "off" or not features.reuse_cache:
            return hits
        for name, own in self.config.by_problem().items():
            if name not in except_of:
                self._find(hits, name, own, store, stop)
        return hits

    def _find(
        self, hits: Hits, name: str, own: ProblemConfig, store: ObjectStore, stop: threading.Event
    ) -> None:
        sources = {split: wanted(own, split) for split in ENCODED_SPLITS}
        if all(source.path.exists() for of_split in sources.values() for source in of_split):
            return

        def ask(source: Wanted) -> tuple[str, int] | None:
            entry = store.noted(*source.place)
            return None if entry is None else (entry["sha256"], entry["bytes"])

        try:
            known = as_known(own, sources, ask, stop)
        except UpsError as error:  # whoever fetches says it
            if stop.is_set():
                raise
            log.debug("not looked for in the shared cache: %s", error)
            return
        by_key = {compute_cache_hash(own, of): of for of in known}
        keys = list(by_key)
        found = at_once(
            lambda key: self.manifest(hits.remote, key), keys, MOST_ASKED, stop, "the shared cache"
        )
        for key, manifest in zip(keys, found, strict=True):
            if manifest is not None and is_of(own, manifest):
                hits.manifests[name], hits.sources[name] = manifest, by_key[key]
                hits.keys[name] = key
                raw = sum(staged.num_bytes for of in by_key[key].values() for staged in of)
                log.info(
                    "latents %s are in %s: %s in place of %s",
                    *(key, hits.remote.uri, format_size(manifest.num_bytes), format_size(raw)),
                )
                return

    def manifest(self, remote: Remote, key: str) -> Manifest | None:
        """The manifest of an entry; None, and a line in the log, where there is none."""
        try:
            manifest = remote.find(key)
        except UpsError as error:
            say_miss(remote.folder.uri(key), error)
            return None
        if manifest is None:
            log.info("no latents %s in %s: a miss, they are built here", key, remote.uri)
        return manifest

    def pull(self, hits: Hits, found: Cached, stop: threading.Event, show: Show) -> None:
        """Bring whole entries here; those that came are in `found`, too."""
        for name, manifest in hits.manifests.items():
            own = self.config.by_problem()[name]
            if self.pull_one(hits, name, own, stop, show) is not None:
                found.sources[name], found.keys[name] = hits.sources[name], manifest.config_hash
        hits.is_over.set()

    def pull_one(
        self, hits: Hits, name: str, own: ProblemConfig, stop: threading.Event, show: Show
    ) -> Pulled | None:
        """Bring a whole entry here; None, and a line in the log, where that does not work.

        Raises:
            Interrupted: `stop` was set.
        """
        fetching = Pull(hits.remote, hits.manifests[name], own.training.latent_cache_dir)
        try:
            self.pulled[name] = pull_whole(fetching, stop, show(f"[{name}] pulled", "MB", 1e6))
        except (UpsError, OSError) as error:
            if stop.is_set():
                raise
            self.note_fault(fetching, error)
        else:
            keep_to_budget(own, {manifest.generation for manifest in hits.manifests.values()})
        return self.pulled.get(name)

    def fetched(self) -> dict[tuple[str, Split], list[Staged]]:
        """(problem, split) → its sources, which had to be fetched after all."""
        so_far = {} if self.hits is None else self.hits.so_far()
        return {wanted: of for wanted, of in so_far.items() if any(s.is_here for s in of)}

    def note_fault(self, fetching: Pull, error: BaseException) -> None:
        """Say why an entry is not pulled; where it is damaged, a push replaces it."""
        say_miss(fetching.uri, error)
        is_damaged = isinstance(error, CacheDamaged | ObjectChanged)
        if is_damaged or answer(error.__cause__)[1] == 404:
            self._damaged[fetching.manifest.config_hash] = fetching.manifest.generation

    def push(
        self, store: ObjectStore | None, keys: Mapping[str, str], stop: threading.Event
    ) -> str:
        """Push entries that are here and not there; what became of it, in a line.

        Args:
            keys: problem → its cache key.
        """
        built = [key for name, key in keys.items() if name not in self.pulled]
        if not built:
            return "nothing to push: the latents were pulled"
        from ups.latents.push import push_all

        return push_all(self.config, built, store, stop, self._damaged)
