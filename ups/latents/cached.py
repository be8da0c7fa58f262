"""Which latents are in the cache although their files are not here: nothing of those is fetched."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ups.background import at_once
from ups.config import ProblemConfig, RunConfig, Split
from ups.data.lookup import look_up
from ups.data.objectstore import ObjectStore
from ups.data.sources import MOST_ASKED, Staged, Wanted, as_stored, stage_one, wanted
from ups.equations import is_same_value
from ups.errors import CacheError, ObjectUnavailable
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.scout import scout
from ups.latents.scouted import Scouted
from ups.latents.store import POINTER_NAME, open_current
from ups.progress import Show

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Cached:
    """Problems whose latents are in the cache, with files that are not all here.

    Attributes:
        sources: problem → those of train and of val, by what the store says of them.
        keys: problem → the key of its entry.
    """

    sources: dict[str, dict[str, list[Staged]]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def look(
    config: RunConfig,
    store: ObjectStore | None,
    stop: threading.Event,
    show: Show,
    *,
    overwrite: bool = False,
) -> Scouted | Cached | None:
    """What of the sources the first step does not wait for; None where it waits for all.

    Args:
        overwrite: build entries that are there, too.
        stop, show: see `scout`.
    Raises: see `scout`.
        MissingExtra, ClusterError: a cluster is to encode, and cannot.
    """
    if store is not None and not overwrite:
        found = find_cached(config, store, stop)
        if found.keys:
            log.info("nothing to fetch of train and val: in the cache is %s", ", ".join(found.keys))
            return found
    if store is not None and config.encodes_on_cluster and _is_missing(config):
        from ups.latents.cluster import require_cluster

        require_cluster(config)  # before anything is fetched for it
    return scout(config, store, stop, show)


def _is_missing(config: RunConfig) -> bool:
    """Whether a file of train or val is not here."""
    each = [wanted(own, split) for own in config.by_problem().values() for split in ENCODED_SPLITS]
    return not all(source.path.exists() for sources in each for source in sources)


def find_cached(config: RunConfig, store: ObjectStore, stop: threading.Event) -> Cached:
    """The problems that need none of their files of train and val to be trained on.

    Their cache keys are made of what manifests in the bucket say.

    Raises:
        DataError, FetchError: the run would fail with it in any case.
        Interrupted: `stop` was set.
    """
    found, features = Cached(), config.features
    if features.stream == "off" or features.preload == "off" or not features.reuse_cache:
        return found
    cache_dir = config.training.latent_cache_dir
    if features.is_legacy or not any(cache_dir.glob(f"*/{POINTER_NAME}")):
        return found
    for name, own in config.by_problem().items():
        sources = {split: wanted(own, split) for split in ENCODED_SPLITS}
        if all(source.path.exists() for of_split in sources.values() for source in of_split):
            continue
        for known in _as_known(own, sources, store, stop):
            key = compute_cache_hash(own, known)
            if _is_valid(own, key):
                found.sources[name], found.keys[name] = known, key
                break
    return found


def _is_valid(config: ProblemConfig, key: str) -> bool:
    """Whether the entry can be read, and is not of another parameter than the config's.

    The files that were read for it hold that other one: they are fetched, and refused for it.
    """
    try:
        manifest = open_current(config.training.latent_cache_dir, key)
    except CacheError:
        return False
    expected = config.problem.parameter_value
    found = [value for file in manifest.files for value in file.parameters.values()]
    return expected is None or all(is_same_value(value, expected) for value in found)


def _as_known(
    config: ProblemConfig,
    sources: Mapping[Split, Sequence[Wanted]],
    store: ObjectStore,
    stop: threading.Event,
) -> list[dict[str, list[Staged]]]:
    """The sources by what the store says, empty where it does not say their SHA-256.

    Twice where their names or the config hold a parameter: only the files tell whether they hold
    it, too.
    """

    each = [source for of_split in sources.values() for source in of_split]
    listed = look_up(store, [source.place for source in each if source.bucket], stop)

    def ask(source: Wanted) -> Staged | None:
        if source.bucket is None:
            return stage_one(config, source, None, stop=stop)
        info = listed.get(source.place) or store.head(*source.place)
        if info.sha256 is None:
            return None
        return as_stored(source, info.sha256, info.num_bytes, is_here=source.path.exists())

    try:
        answers = at_once(ask, each, MOST_ASKED, stop, "the object store")
    except ObjectUnavailable as error:  # the download of that object says it, with its split
        log.debug("not looked for in the cache: %s", error)
        return []
    unnamed: dict[str, list[Staged]] = {split: [] for split in sources}
    named: dict[str, list[Staged]] = {split: [] for split in sources}
    for source, known in zip(each, answers, strict=True):
        if known is None:
            return []
        unnamed[source.split].append(known)
        parameter = config.problem.parameter_beside(source.path.stem)
        named[source.split].append(known.model_copy(update={"parameter": parameter}))
    return [unnamed] if named == unnamed else [unnamed, named]
