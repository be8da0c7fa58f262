"""Memory that is at hand when what is measured begins.

A virtual machine's host may take back the pages that its guest has freed (free page reporting,
`/sys/module/page_reporting`). The first touch of such a page costs up to ten times a later one
(0.10 against 0.01 ms for 103 kB), and who meets them depends on who ran before: a download of
435 MB took 1.2 s with them and 0.5 s without.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ups.config import SPLITS, RunConfig
from ups.data.sources import open_store, wanted
from ups.telemetry.memory import available_ram_mb

SHARE_OF_AVAILABLE = 0.5


def claim_for_run(config: RunConfig) -> int:
    """Claim the memory that a run takes which fetches everything; returns the bytes.

    Its files in the page cache, and as much again for latents, buffers and the process; at most
    half of what is available.

    Raises:
        ObjectUnavailable, FetchError, DataError: its objects, or local files, are not there.
    """
    needed = 2 * _num_input_bytes(config)
    num_bytes = min(needed, int(SHARE_OF_AVAILABLE * available_ram_mb() * 1e6))
    claim(num_bytes)
    return num_bytes


def claim(num_bytes: int) -> None:
    """Touch so much memory and let go of it, so that whoever is measured next finds it at hand."""
    parts = np.array_split(np.empty(num_bytes, np.uint8), os.cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in pool.map(lambda part: part.fill(1), parts):
            pass


def _num_input_bytes(config: RunConfig) -> int:
    store, sizes = open_store(config), {}
    try:
        for alone in config.by_task().values():
            for source in (source for split in SPLITS for source in wanted(alone, split)):
                if store is None or source.bucket is None or source.key is None:
                    sizes[source.uri] = source.path.stat().st_size
                else:
                    sizes[source.uri] = store.head(source.bucket, source.key).num_bytes
    finally:
        if store is not None:
            store.close()
    return sum(sizes.values())
