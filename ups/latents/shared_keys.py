"""Which entries of a config are here, or in the shared cache, by the keys that it may have."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ups.config import RunConfig
from ups.data.sources import Wanted, open_store, wanted
from ups.errors import CacheError
from ups.latents.cached import as_known
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.remote import Remote
from ups.latents.store import valid_generation


def keys_of(config: RunConfig, stop: threading.Event) -> dict[str, list[str]]:
    """Problem → the keys that its entry may have, by the manifests in the bucket alone.

    Two where a name or the config holds a parameter: only the files tell whether they do, too.

    Raises:
        DataError: a local file is not there, or a manifest is none.
        CacheError: a manifest does not tell a SHA-256.
        FetchError: the store cannot be reached. Interrupted: `stop` was set.
    """
    found, store = {}, open_store(config)
    with ExitStack() as on_exit:
        if store is not None:
            on_exit.callback(store.close)

        def ask(source: Wanted) -> tuple[str, int] | None:
            entry = None if store is None else store.noted(*source.place)
            return None if entry is None else (entry["sha256"], entry["bytes"])

        for name, own in config.by_problem().items():
            sources = {split: wanted(own, split) for split in ENCODED_SPLITS}
            known = as_known(own, sources, ask, stop)
            if not known:
                raise CacheError(
                    f"the key of {name} is not known before its data are here: no manifest.json "
                    "beside its objects has their SHA-256; give the KEY, see `ups cache list`"
                )
            found[name] = [compute_cache_hash(own, of) for of in known]
    return found


def keys_here(config: RunConfig, stop: threading.Event) -> list[str]:
    """The keys of a config's entries on this machine.

    Raises:
        CacheError: one is not here. DataError, FetchError, Interrupted: see `keys_of`.
    """
    cache_dir, chosen = config.training.latent_cache_dir, []
    for name, keys in keys_of(config, stop).items():
        here = [key for key in keys if valid_generation(cache_dir, key)]
        if not here:
            raise CacheError(
                f"no entry {' or '.join(keys)} of {name} in {cache_dir}: build it, by "
                "`ups cache build` or a run"
            )
        chosen += here
    return chosen


def keys_there(config: RunConfig, remote: Remote, stop: threading.Event) -> list[str]:
    """The keys of a config's entries in the shared cache.

    Raises:
        CacheError: one is not there. DataError, FetchError, Interrupted: see `keys_of`.
    """
    chosen = []
    for name, keys in keys_of(config, stop).items():
        there = [key for key in keys if remote.generation(key)]
        if not there:
            raise CacheError(
                f"no entry {' or '.join(keys)} of {name} in {remote.uri}: the first run that "
                "builds it pushes it"
            )
        chosen += there
    return chosen
