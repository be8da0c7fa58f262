"""A whole run in this process, without Prefect: download, cache, load, train, evaluate."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import SPLITS, Parsed, RunConfig, Split
from ups.config_data import Task
from ups.data.sources import Staged, open_store, stage
from ups.pipeline import SourcesByTask, build_cache, load_latents
from ups.progress import Show
from ups.runs import open_run_dir, recorded
from ups.telemetry.gpu import GpuWatch, summary
from ups.telemetry.metrics_file import add_to_summary
from ups.telemetry.phases import plan_metrics
from ups.telemetry.process import process_started_at
from ups.tracking import tracked
from ups.validate.head import require_valid

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.training.loop import TrainResult

MOST_DOWNLOADS = 8  # objects at once, each over several connections


def open_local_run(
    parsed: Parsed, run_id: str | None, resume: Path | None
) -> tuple[RunConfig, Path]:
    """The config, and the folder of a new run, or of the interrupted one of this id.

    Args:
        resume: a checkpoint of another run to go on from.
    Raises:
        ValidationFailed: the config, or this machine, has faults; a line for each.
    """
    require_valid(parsed, resume, ask_torch=True)
    config = parsed.valid()
    return config, open_run_dir(config, run_id or secrets.token_hex(4))


def run_locally(
    config: RunConfig,
    run_dir: Path,
    show: Show,
    *,
    command: str | None = None,
    resume: Path | None = None,
) -> dict[str, float]:
    """
    Args:
        show: makes the callbacks that are told how far each phase has got.
        command: as typed in a shell, for the run's record.
        resume: a checkpoint of another run to go on from.
    Returns:
        The metrics of this run, as they stand in the last line of `metrics.jsonl`.
    """
    from ups.training.evaluate import evaluate
    from ups.training.loop import train

    with (
        recorded(run_dir, command=command),
        tracked(config, run_dir) as trackers,
        GpuWatch() as gpu,
    ):
        staged = stage_splits(config, SPLITS, show)
        entries = None
        if config.features.preload != "off":
            overwrite = not config.features.reuse_cache
            entries = build_caches(config, staged, show, overwrite=overwrite)
        latents = load_latents(config, staged, entries)
        try:
            result = train(
                config,
                latents,
                run_dir,
                resume=resume,
                on_first_step=lambda _at: trackers.start(),
                progress=show("trained", "steps"),
            )
            metrics = _startup(config, list((entries or {}).values()), result)
            if use := result.first_epoch and summary(gpu.samples, *result.first_epoch):
                metrics["training/gpu_utilization_pct"] = use.mean_pct
            add_to_summary(run_dir, metrics)
            test = {name: splits["test"] for name, splits in staged.items()}
            scores = evaluate(config, result.checkpoint, test, latents.encoders, run_dir)
        finally:
            latents.close()
    return {**metrics, **scores.metrics()}


def stage_splits(
    config: RunConfig, splits: Sequence[Split], show: Show
) -> dict[str, dict[str, list[Staged]]]:
    """Task → split → its sources on disk; whatever ends it, Ctrl-C too, ends the transfers."""
    store, stop = open_store(config), threading.Event()
    tasks, by_task = config.data.tasks, config.by_task()

    def one(wanted: tuple[Task, Split]) -> list[Staged]:
        task, split = wanted
        told = show(f"[{config.data.label(task, split)}] fetched", "MB", 1e6)
        return stage(by_task[task.name], split, store, stop=stop, progress=told)

    wanted = [(task, split) for split in splits for task in tasks]
    workers = min(len(wanted), MOST_DOWNLOADS) if config.features.parallel_downloads else 1
    found: dict[str, dict[str, list[Staged]]] = {task.name: {} for task in tasks}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for (task, split), staged in zip(wanted, pool.map(one, wanted), strict=True):
                found[task.name][split] = staged
            return found
        except BaseException:
            stop.set()
            raise


def build_caches(
    config: RunConfig, staged: SourcesByTask, show: Show, *, overwrite: bool
) -> dict[str, CacheEntry]:
    """Task → its entry, built one after the other: each build uses the whole machine."""
    entries: dict[str, CacheEntry] = {}
    for task in config.data.tasks:
        entries[task.name] = build_cache(
            config.of_task(task),
            staged[task.name],
            overwrite=overwrite,
            keep=[entry.generation for entry in entries.values()],
            progress=show(config.data.label(task, "encoded"), "trajectories"),
        )
    return entries


def _startup(
    config: RunConfig, entries: Sequence[CacheEntry], result: TrainResult
) -> dict[str, float]:
    """The plan's metrics; what starts this run is the start of its process."""
    metrics = {"training/epoch_time_sec": result.epoch_time_s}
    if result.first_step_at is None:  # every step was taken before: no startup to speak of
        return metrics
    startup_s = result.first_step_at - process_started_at()
    return metrics | plan_metrics(
        cache_s=sum(entry.seconds for entry in entries if not entry.reused),
        cache_reused=bool(entries) and all(entry.reused for entry in entries),
        startup_s=startup_s,
        ttfs_s=startup_s,
        cost_usd=startup_s / 3600 * config.startup.price_per_hour,
    )
