"""What of the sources the first step does not wait for: asked before anything is fetched."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, TypeGuard

from ups.config import RunConfig
from ups.data.objectstore import ObjectStore
from ups.data.sources import wanted
from ups.latents.cached import Cached, find_cached
from ups.latents.key import ENCODED_SPLITS
from ups.latents.scout import may_stream, scout
from ups.latents.scouted import Scouted
from ups.progress import Show

if TYPE_CHECKING:
    from ups.latents.sharing import Hits, Sharing

log = logging.getLogger(__name__)


def look(
    config: RunConfig,
    store: ObjectStore | None,
    stop: threading.Event,
    show: Show,
    *,
    overwrite: bool = False,
    sharing: Sharing | None = None,
) -> Scouted | Cached | Hits | None:
    """What of the sources the first step does not wait for; None where it waits for all.

    Args:
        overwrite: build entries that are there, too.
        stop, show: see `scout`.
        sharing: the shared cache, where the config names one.
    Raises: see `scout`.
        MissingExtra, ClusterError: a cluster is to encode, and cannot.
    """
    if store is not None and not overwrite:
        found = find_cached(config, store, stop)
        if sharing is not None:
            hits = sharing.find(store, stop, except_of=found.keys)
            if may_stream(config) and hits.keys.keys() == config.by_problem().keys():
                return hits
            sharing.pull(hits, found, stop, show)
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


def comes_meanwhile(found: Scouted | Cached | Hits | None) -> TypeGuard[Scouted | Hits]:
    """Whether what is trained on comes while training goes on."""
    return found is not None and not isinstance(found, Cached)
