"""A whole run in this process, without Prefect: download, cache, load, train, evaluate."""

from __future__ import annotations

import logging
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
from ups.telemetry.breakdown import break_down, leave
from ups.telemetry.metrics_file import begin_summary
from ups.telemetry.phases import Breakdown, Span
from ups.telemetry.process import process_started_at
from ups.telemetry.story import Cached, Story
from ups.telemetry.timeline import Timeline
from ups.tracking import Trackers, tracked
from ups.validate.head import require_valid

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry

log = logging.getLogger(__name__)

MOST_DOWNLOADS = 8  # objects at once, each over several connections
BOUNDS = {
    "boot": "a new interpreter imports what reads the config",
    "validate": "config, memory, disk and device, for which torch is imported",
    "warm-up": "import what trains and scores",
    "first step": "build the model, take one optimizer step",
}


class LocalRun:
    """A run of this process; what starts it is the start of the process."""

    def __init__(self, parsed: Parsed, run_id: str | None, resume: Path | None) -> None:
        """Check the config, and open the folder of a new run, or of the interrupted one of this id.

        Args:
            resume: a checkpoint of another run to go on from.
        Raises:
            ValidationFailed: the config, or this machine, has faults; a line for each.
        """
        self._started_at = process_started_at()
        self._timeline, self._resume = Timeline(), resume
        with self._timeline.phase("validate"):
            require_valid(parsed, resume, ask_torch=True)
        self.config = parsed.valid()
        self.run_dir = open_run_dir(self.config, run_id or secrets.token_hex(4))
        self._story = Story(self.config, self.run_dir)

    def run(self, show: Show, command: str | None = None) -> dict[str, float]:
        """
        Args:
            show: makes the callbacks that are told how far each phase has got.
            command: as typed in a shell, for the run's record.
        Returns:
            The metrics of this run, as they stand in the last line of `metrics.jsonl`.
        """
        story = self._story
        with (
            recorded(self.run_dir, command=command),
            tracked(story.config, self.run_dir) as trackers,
        ):
            try:
                with story.gpu:
                    self._run_phases(show, trackers)
            except BaseException as error:
                story.failure = error
                raise
            finally:
                if story.latents is not None:
                    story.latents.close()
                metrics = self._report()
        assert story.scores is not None, "the run was completed"
        return {**metrics, **story.scores.metrics()}

    def _run_phases(self, show: Show, trackers: Trackers) -> None:
        story, config, phase = self._story, self._story.config, self._timeline.phase
        with phase("warm-up"):
            from ups.training.evaluate import evaluate
            from ups.training.loop import train
        with phase("download"):
            staged = stage_splits(config, SPLITS, show)
            for name, splits in staged.items():
                story.staged.update({(name, split): splits[split] for split in SPLITS})
        entries = None
        if config.features.preload != "off":
            with phase("cache"):
                overwrite = not config.features.reuse_cache
                entries = build_caches(config, staged, show, overwrite=overwrite)
            for name, entry in entries.items():
                story.entries[name] = Cached(entry, entry.reused)
                story.config_hashes.append(entry.config_hash)
        with phase("load"):
            story.latents = load_latents(config, staged, entries)

        def note_first_step(at: float) -> None:
            story.first_step_at = at
            trackers.start()
            so_far = self._break_down()  # whoever ends the process later, this is known
            so_far.save(self.run_dir)
            begin_summary(self.run_dir, so_far.metrics)

        with phase("train"):
            story.result = train(
                config,
                story.latents,
                self.run_dir,
                resume=self._resume,
                on_first_step=note_first_step,
                progress=show("trained", "steps"),
            )
        with phase("evaluate"):
            test = {name: splits["test"] for name, splits in staged.items()}
            checkpoint, encoders = story.result.checkpoint, story.latents.encoders
            story.scores = evaluate(config, checkpoint, test, encoders, self.run_dir)

    def _break_down(self) -> Breakdown:
        spans = self._timeline.spans
        boot = Span(phase="boot", name="boot", start=self._started_at, end=spans[0].start)
        return break_down(
            self._story,
            [boot, *spans],
            triggered_at=self._started_at,
            start_mode="cold",
            bounds=BOUNDS,
        )

    def _report(self) -> dict[str, float]:
        """Leave the breakdown. What a run came to does not change because that fails."""
        try:
            breakdown = self._break_down()
            leave(breakdown, self.run_dir)
        except Exception as error:  # noqa: BLE001 (the disk, a picture: the run counts)
            log.warning("the startup's breakdown could not be written: %s", error)
            return {}
        return breakdown.metrics


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
