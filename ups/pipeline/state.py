"""The state of a run, and what goes on around its phases, however the run was started."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from ups.config import Problem, RunConfig, Split, run_title
from ups.data.sources import Staged
from ups.errors import refusals_explained
from ups.machine.gpu import GpuWatch
from ups.machine.ranks import ranks_to_start
from ups.runs.breakdown import Span
from ups.runs.folder import CHECKPOINTS, LAST
from ups.runs.metrics import read_metrics
from ups.runs.record import recorded
from ups.runs.stored import RunInfo
from ups.trace import Trace
from ups.tracking import Trackers, tracked

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.latents.sharing import Sharing
    from ups.training.evaluate import Scores
    from ups.training.loop import TrainResult

log = logging.getLogger(__name__)

ProblemSplit = tuple[str, Split]
"""The name of a problem, and one of its splits."""


@dataclass(slots=True)
class Steps:
    """How far training is: the step that this process took first, the last, and how many in all."""

    first: int
    last: int
    total: int


class RankTimes(NamedTuple):
    """When the last of the ranks had been started, and had met the others: Unix times."""

    started_at: float
    joined_at: float


@dataclass(slots=True)
class RunState:
    """What a run has learned about itself so far; None or empty where it has not got there.

    Attributes:
        flow_run_id: None of a run without Prefect.
        changed: of the config, dotted key → value.
        provision: before the trigger, on a machine rented for this run.
        trace: what its threads did.
        ranks: where several processes train.
        staged: the files of a split of a problem.
        sharing: the shared cache, where the config names one.
        config_hashes, entries: by the names of the problems.
        result: of the training; while it goes on, what it had come to after the first epoch.
    """

    config: RunConfig
    run_dir: Path
    flow_run_id: UUID | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    gpu: GpuWatch = field(default_factory=GpuWatch)
    trace: Trace = field(default_factory=Trace)
    provision: Sequence[Span] = ()
    staged: dict[ProblemSplit, Sequence[Staged]] = field(default_factory=dict)
    config_hashes: dict[str, str] = field(default_factory=dict)
    entries: dict[str, CacheEntry] = field(default_factory=dict)
    sharing: Sharing | None = None
    latents: Latents | None = None
    result: TrainResult | None = None
    scores: Scores | None = None
    steps: Steps | None = None
    ranks: RankTimes | None = None
    first_step_at: float | None = None
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.gpu.num_gpus = ranks_to_start(self.config)  # one for each

    @property
    def title(self) -> str:
        """What a person calls it by."""
        return run_title(self.config.name, self.changed)

    @property
    def config_hash(self) -> str | None:
        """The keys of all cache entries that are known."""
        return ", ".join(self.config_hashes.values()) or None

    @property
    def cache_reused(self) -> bool | None:
        """Whether all entries were found; None where there are none."""
        return all(entry.reused for entry in self.entries.values()) if self.entries else None

    def note_steps(self, last: int, total: int) -> None:
        """Note how far training is: a `Progress`."""
        if self.steps is None:
            self.steps = Steps(last, last, total)
        self.steps.last = last

    def note_first_epoch(self, result: TrainResult) -> None:
        """Note what training has come to, while it goes on."""
        self.result = result

    def note_ranks(self, started_at: float, joined_at: float) -> None:
        """Note when the ranks were there."""
        self.ranks = RankTimes(started_at, joined_at)

    def staged_of(self, problem: Problem, splits: Iterable[Split]) -> dict[str, Sequence[Staged]]:
        """The files of these splits of a problem."""
        return {split: self.staged[problem.name, split] for split in splits}

    def files(self) -> list[Staged]:
        """All that is staged; a file that several splits read is there several times."""
        return [staged for of_split in self.staged.values() for staged in of_split]


def sharing_of(config: RunConfig) -> Sharing | None:
    """The shared cache of a run; None, and no import, where its config names none."""
    if config.cache.remote is None or config.features.is_legacy:
        return None
    from ups.latents.sharing import Sharing

    return Sharing(config)


@contextmanager
def running(
    run: RunState,
    report: Callable[[], object],
    *,
    command: str | None = None,
    deployment: str | None = None,
) -> Iterator[Trackers]:
    """Record the phases inside, watch the GPU meanwhile, and report how they ended.

    What a run came to does not change because its report fails.

    Args:
        report: writes or publishes the breakdown.
        command, deployment: for the run's record.
    """
    flow_run_id = None if run.flow_run_id is None else str(run.flow_run_id)
    record = recorded(
        run.run_dir,
        command=command,
        deployment=deployment,
        flow_run_id=flow_run_id,
        changed=run.changed,
    )
    with run.trace.opened(), record, tracked(run.config, run.run_dir) as trackers:
        try:
            with run.gpu, refusals_explained():
                yield trackers
        except BaseException as error:  # a cancel, too: the breakdown says how a run ended
            run.failure = error
            raise
        finally:
            if run.latents is not None:
                run.latents.close()
            try:
                report()
            except Exception as error:  # noqa: BLE001 (the disk, a picture, the API: the run counts)
                log.warning("the breakdown of the startup could not be reported: %s", error)


def scores_of_complete_run(run_dir: Path, config: RunConfig) -> dict[str, float]:
    """The test scores of a run that has nothing left to do; empty where it has."""
    from ups.training import checkpoint

    info, last = RunInfo.load(run_dir), run_dir / CHECKPOINTS / LAST
    if info is None or info.state != "completed" or not last.exists():
        return {}
    if not checkpoint.is_complete(checkpoint.load(last, mmap=True), config):
        return {}
    metrics = read_metrics(run_dir).summary
    scores = {name: value for name, value in metrics.items() if name.startswith("test/")}
    if not all(value is not None and math.isfinite(value) for value in scores.values()):
        return {}  # scored anew, and refused
    if scores:
        what = f"stages.operator.epochs is {config.stages.operator.epochs}"
        log.info("%s is complete, nothing is trained: %s, raise it to go on", run_dir, what)
    return scores
