"""Bring machine and folder into the state that a scenario's run is to find, outside the clock."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np

from ups.config import SPLITS, RunConfig
from ups.data.sources import open_store, stage, wanted
from ups.errors import BenchmarkError, ConfigError
from ups.latents import store
from ups.latents.key import compute_cache_hash
from ups.machine.cgroup import num_cores
from ups.machine.memory import available_ram_mb
from ups.runs.folder import CHECKPOINTS, parse_folder_name
from ups.startup.measure.scenarios import Scenario

RETAINED_RUNS = 20  # of each scenario: four nights at the default of 5 repeats
SHARE_OF_AVAILABLE = 0.5  # of the memory


def prepare(scenario: Scenario, config: RunConfig, stop: threading.Event | None = None) -> bool:
    """Remove what the run must not find, and stage what it must.

    Returns: whether it will find all. A missing cache is left to a run of the scenario that does
        not count, so that Prefect's own record of the entry exists, too.
    Raises:
        BenchmarkError: what the run must not find cannot be removed.
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
        _remove(config.data_root)
        _remove(cache_dir)
        return True
    objects = open_store(config)
    with closing(objects) if objects is not None else nullcontext():
        keys = [
            compute_cache_hash(own, {s: stage(own, s, objects, stop=stop) for s in SPLITS})
            for own in config.by_problem().values()
        ]
    if scenario.before == "data":
        for key in keys:
            _remove(store.entry_dir(cache_dir, key))
        return True
    return all(store.check_cache_valid(cache_dir, key) for key in keys)


def _remove(folder: Path) -> None:
    """Remove a folder with all that is in it.

    Raises:
        BenchmarkError: it still exists afterwards.
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


def tidy(runs_dir: Path) -> None:
    """Retain the last folders of a scenario's ended runs, without their checkpoints.

    What counts of them is in the history; whoever follows a link finds config, log and breakdown.
    """
    runs = sorted(d for d in runs_dir.glob("*") if parse_folder_name(d.name))
    for run_dir in runs:
        gone = run_dir if run_dir in runs[:-RETAINED_RUNS] else run_dir / CHECKPOINTS
        shutil.rmtree(gone, ignore_errors=True)  # in the way of nothing; the next one tries again


def touch_memory_of_run(config: RunConfig) -> int:
    """Touch the memory that a run takes which fetches everything; returns the bytes.

    Its files in the page cache, and as much again for latents, buffers and the process; at most
    half of what is available.

    Raises:
        ObjectUnavailable, FetchError, DataError: its objects, or local files, are missing.
    """
    available_bytes = SHARE_OF_AVAILABLE * available_ram_mb() * 1e6
    num_bytes = min(2 * _num_input_bytes(config), int(available_bytes))
    touch_memory(num_bytes)
    return num_bytes


def touch_memory(num_bytes: int) -> None:
    """Touch so much memory and let go of it, so that what is measured next need not wait for it.

    A virtual machine's host may take back the pages that its guest has freed (free page reporting,
    `/sys/module/page_reporting`). The first touch of such a page costs up to ten times a later one
    (0.10 against 0.01 ms for 103 kB), and who meets them depends on who ran before: a download of
    435 MB took 1.2 s with them and 0.5 s without.
    """
    parts = np.array_split(np.empty(num_bytes, np.uint8), num_cores())
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in pool.map(lambda part: part.fill(1), parts):
            pass


def _num_input_bytes(config: RunConfig) -> int:
    problems = config.by_problem().values()
    sources = {s.uri: s for own in problems for split in SPLITS for s in wanted(own, split)}
    objects = open_store(config)
    with closing(objects) if objects is not None else nullcontext():
        return sum(
            source.path.stat().st_size
            if objects is None or source.bucket is None or source.key is None
            else objects.head(source.bucket, source.key).num_bytes
            for source in sources.values()
        )
