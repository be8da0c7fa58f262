"""The phases of a run as plain functions, for tasks and for the shell alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from ups.config import RunConfig
from ups.data.sources import Staged
from ups.device import encoding_device, training_device
from ups.latents.build import CacheEntry, ensure
from ups.latents.loader import Latents, load, load_on_demand

SourcesBySplit = Mapping[str, Sequence[Staged]]
SourcesByTask = Mapping[str, SourcesBySplit]


def build_cache(
    config: RunConfig,
    sources: SourcesBySplit,
    *,
    overwrite: bool = False,
    keep: Collection[str] = (),
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CacheEntry:
    """The entry of a task that `load_latents` reads: legacy, new or reused, after the features.

    Args:
        config: of one task.
        keep: generations that no budget removes: of the other tasks of the run.
    """
    if config.features.is_legacy:
        from ups.latents import legacy

        return legacy.precompute(config, sources, stop=stop, progress=progress)
    return ensure(
        config,
        sources,
        device=encoding_device(config),
        overwrite=overwrite,
        keep=keep,
        stop=stop,
        progress=progress,
    )


def load_latents(
    config: RunConfig,
    sources: SourcesByTask,
    entries: Mapping[str, CacheEntry] | None,
    *,
    stop: threading.Event | None = None,
) -> Latents:
    """Train and val in the tier that the config's features and this machine's memory allow.

    Args:
        entries: task → its cache entry; None: encode on demand.
    """
    device = training_device(config)
    if entries is None:
        return load_on_demand(config, sources, device=device)
    if config.features.is_legacy:
        from ups.latents import legacy

        return legacy.load(config, sources, device)
    return load(config, entries, sources, device=device, stop=stop)
