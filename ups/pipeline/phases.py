"""The phases of a run as plain functions, for tasks and for the shell alike.

What imports torch is imported in the bodies: the first bytes are on their way meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from ups.background import WATCH_S, in_context
from ups.config import Problem, ProblemConfig, RunConfig, Split
from ups.data.sources import Staged, stage
from ups.errors import UpsError
from ups.machine.devices import encoding_device, limit_torch_threads, training_device
from ups.machine.ranks import ranks_to_start
from ups.progress import Progress, Show

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.latents.parts import Spread
    from ups.latents.sharing import Sharing

SourcesBySplit = Mapping[str, Sequence[Staged]]
SourcesByProblem = Mapping[str, SourcesBySplit]

MOST_DOWNLOADS = 8  # objects at once, each over several connections


def stage_splits(
    config: RunConfig,
    splits: Sequence[Split],
    store: ObjectStore | None,
    show: Show,
    *,
    known: SourcesByProblem | None = None,
    stop: threading.Event | None = None,
) -> dict[str, dict[str, Sequence[Staged]]]:
    """Stage splits of all problems; whatever ends it, Ctrl-C too, ends the transfers.

    Args:
        known: of problems that need nothing on disk, the sources.
        stop: ends it; set when this returns.
    Returns:
        Problem → split → its sources, on disk but for the known ones.
    """
    stop, known = stop or threading.Event(), known or {}
    problems, by_problem = config.data.problems, config.by_problem()

    def one(wanted: tuple[Problem, Split]) -> Sequence[Staged]:
        problem, split = wanted
        if split in known.get(problem.name, ()):
            return known[problem.name][split]
        progress = show(f"[{config.data.label(problem, split)}] fetched", "MB", 1e6)
        return stage(by_problem[problem.name], split, store, stop=stop, progress=progress)

    wanted = [(problem, split) for split in splits for problem in problems]
    workers = min(len(wanted), MOST_DOWNLOADS) if config.features.parallel_downloads else 1
    found: dict[str, dict[str, Sequence[Staged]]] = {problem.name: {} for problem in problems}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for (problem, split), staged in zip(
                wanted, pool.map(in_context(one), wanted), strict=True
            ):
                found[problem.name][split] = staged
            return found
        finally:
            stop.set()


def build_caches(
    config: RunConfig, staged: SourcesByProblem, show: Show, *, overwrite: bool
) -> dict[str, CacheEntry]:
    """Build or find each problem's entry, one after the other: each uses the whole machine.

    Returns:
        Problem → its entry.
    """
    entries: dict[str, CacheEntry] = {}
    for problem in config.data.problems:
        entries[problem.name] = build_cache(
            config.of_problem(problem),
            staged[problem.name],
            overwrite=overwrite,
            keep=[entry.generation for entry in entries.values()],
            progress=show(config.data.label(problem, "encoded"), "trajectories"),
        )
    return entries


def build_cache(
    config: ProblemConfig,
    sources: SourcesBySplit,
    *,
    overwrite: bool = False,
    keep: Collection[str] = (),
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> CacheEntry:
    """Build or find the entry of a problem that `load_latents` reads, as the features say.

    Args:
        keep: generations that no budget removes: of the other problems of the run.
        spread: how a cluster encodes, where the config has one do it; default: plain Dask.
    """
    limit_torch_threads()
    if config.features.is_legacy:
        from ups.latents import legacy

        return legacy.precompute(config, sources, stop=stop, progress=progress)
    from ups.latents.build import ensure

    plan = None
    if config.encodes_on_cluster:
        from ups.latents.dask_workers import over_dask
        from ups.latents.parts import SpreadBuild

        plan = partial(SpreadBuild, spread=spread or over_dask)
    return ensure(
        config,
        sources,
        device="cpu" if plan else encoding_device(config),
        overwrite=overwrite,
        keep=keep,
        stop=stop,
        progress=progress,
        plan=plan,
    )


def push_entries(
    sharing: Sharing,
    store: ObjectStore | None,
    built: Callable[[], Mapping[str, str]],
    may_begin: threading.Event,
    stop: threading.Event,
) -> str:
    """Push the entries that the shared cache lacks, behind the first step.

    Args:
        built: waits for them; problem → its cache key.
        may_begin: set once the first step is done.
    Returns: what became of them, in a line; empty where there are none, or the run has ended.
    """
    try:
        keys = built()
    except UpsError:  # the training says it
        return ""
    while not may_begin.wait(WATCH_S):
        if stop.is_set():
            return ""
    return sharing.push(store, keys, stop)


def load_latents(
    config: RunConfig,
    sources: SourcesByProblem,
    entries: Mapping[str, CacheEntry] | None,
    *,
    stop: threading.Event | None = None,
) -> Latents:
    """Load train and val into the tier that the config's features and this machine's memory allow.

    Args:
        entries: problem → its cache entry; None: encode on demand.
    """
    from ups.latents.loader import load, load_on_demand

    limit_torch_threads()
    device = training_device(config)
    if device == "cuda" and ranks_to_start(config) > 1:
        # The ranks that come of this process load them; it keeps hold of the entries.
        device, features = "cpu", config.features.model_copy(update={"preload": "disk"})
        config = config.model_copy(update={"features": features})
    if entries is None:
        return load_on_demand(config, sources, device=device)
    if config.features.is_legacy:
        from ups.latents import legacy

        return legacy.load(config, sources, device)
    return load(config, entries, sources, device=device, stop=stop)
