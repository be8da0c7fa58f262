"""Bring a scenario's folder into the state that its run is to find, outside the clock."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import SPLITS, RunConfig
from ups.data.sources import Staged, open_store, stage
from ups.errors import BenchmarkError, ConfigError
from ups.latents import store
from ups.latents.key import compute_cache_hash
from ups.runs import CHECKPOINTS, parse_folder_name
from ups.startup.scenarios import Scenario

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

KEPT_RUNS = 20  # of each scenario: four nights at the default of 5 repeats


def prepare(scenario: Scenario, config: RunConfig, stop: threading.Event | None = None) -> bool:
    """Remove what must not be there, stage what must.

    Returns: whether all is there. A missing cache is left to a run of the scenario that does not
        count, so that Prefect's own record of the entry is there, too.
    Raises:
        BenchmarkError: what must not be there cannot be removed.
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
            _remove(folder)
        return True
    objects = open_store(config)
    try:
        keys = [_stage(alone, objects, stop) for alone in config.by_task().values()]
    finally:
        if objects is not None:
            objects.close()
    if scenario.before == "data":
        for key in keys:
            _remove(store.entry_dir(cache_dir, key))
        return True
    return all(store.check_cache_valid(cache_dir, key) for key in keys)


def _stage(config: RunConfig, objects: ObjectStore | None, stop: threading.Event | None) -> str:
    """Have the files of a task on disk; returns the key of its cache entry."""
    staged: dict[str, list[Staged]] = {
        split: stage(config, split, objects, stop=stop) for split in SPLITS
    }
    return compute_cache_hash(config, staged)


def tidy(runs_dir: Path) -> None:
    """Of a scenario's ended runs keep the last folders, without their checkpoints.

    What counts of them is in the history; whoever follows a link finds config, log and breakdown.
    """
    runs = sorted(d for d in runs_dir.glob("*") if parse_folder_name(d.name))
    for run_dir in runs:
        gone = run_dir if run_dir in runs[:-KEPT_RUNS] else run_dir / CHECKPOINTS
        shutil.rmtree(gone, ignore_errors=True)  # in the way of nothing; the next one tries again


def _remove(folder: Path) -> None:
    """
    Raises:
        BenchmarkError: it is still there afterwards.
    """
    why = "something was written into it meanwhile"
    try:
        shutil.rmtree(folder)
    except OSError as error:
        why = str(error)
    if folder.exists():
        raise BenchmarkError(
            f"{folder} cannot be removed: {why}. The run would find what must not be there; end "
            "what uses it, or remove it by hand"
        )
