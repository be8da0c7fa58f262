"""Bring a scenario's folder into the state that its run is to find, outside the clock."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

from ups.config import SPLITS, RunConfig
from ups.data.sources import Staged, open_store, stage
from ups.errors import ConfigError
from ups.latents import store
from ups.latents.key import compute_cache_hash
from ups.startup.scenarios import Scenario

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore


def prepare(scenario: Scenario, config: RunConfig, stop: threading.Event | None = None) -> bool:
    """Remove what must not be there, stage what must.

    Returns: whether all is there. A missing cache is left to a run of the scenario that does not
        count, so that Prefect's own record of the entry is there, too.
    Raises:
        ConfigError: PDEBENCH_ROOT leads to data that are not the benchmark's.
        ObjectUnavailable, FetchError, DiskFull, DataError, Interrupted: as downloads do.
    """
    if config.data_root != config.data.root:
        raise ConfigError(
            f"PDEBENCH_ROOT is {config.data_root}: a benchmark removes what it staged, and that is "
            "not its own; unset it for the benchmark's process"
        )
    cache_dir = config.training.latent_cache_dir
    if scenario.before == "nothing":
        for folder in (config.data_root, cache_dir):
            shutil.rmtree(folder, ignore_errors=True)
        return True
    objects = open_store(config)
    try:
        keys = [_stage(alone, objects, stop) for alone in config.by_task().values()]
    finally:
        if objects is not None:
            objects.close()
    if scenario.before == "data":
        for key in keys:
            shutil.rmtree(store.entry_dir(cache_dir, key), ignore_errors=True)
        return True
    return all(store.check_cache_valid(cache_dir, key) for key in keys)


def _stage(config: RunConfig, objects: ObjectStore | None, stop: threading.Event | None) -> str:
    """Have the files of a task on disk; returns the key of its cache entry."""
    staged: dict[str, list[Staged]] = {
        split: stage(config, split, objects, stop=stop) for split in SPLITS
    }
    return compute_cache_hash(config, staged)
