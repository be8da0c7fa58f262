"""What a startup benchmark measured: a record per benchmark, which holds one per run."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from ups.config import Model, RunConfig, load_config
from ups.errors import HistoryError
from ups.machine import host
from ups.machine.page_cache import PageCache, setting
from ups.runs.breakdown import Breakdown, Span

FOLDER = Path("data/benchmarks")
MACHINE_FACTS = ("processor", "cores", "RAM", "disk", "GPU", "kernel")
# Of a config, what the time to the first step does not depend on, or the benchmark sets itself.
WITHOUT_EFFECT: Any = {
    **dict.fromkeys(("name", "runs_dir", "checkpoint", "evaluation", "logging", "startup"), True),
    "data": {"root": True, "sources": True, "generate": {"num_trajectories"}},
    "training": {"latent_cache_dir": True},
}
# Of a run besides its time to first step: preparing, training, scoring, the end of its process.
NUM_RECENT = 20
BESIDE_S = 5.0
UNKNOWN_RUN_S = 7.0  # of two cores with 512 trajectories, all scenarios alike


class RunRecord(Model):
    """One run of a scenario, from its breakdown.

    Attributes:
        triggered_at: Unix time in seconds.
        phases: phase → the wall seconds that it covers between trigger and first step,
            `unaccounted` included.
        idle_s, waited_s: as in a breakdown, until the end of the first epoch; None where that did
            not end, and of earlier versions.
        bounds: phase → what bounds it, in words.
        bounds_s: phase → the least seconds that this machine needs for the phase's bytes, where
            that was measured.
        spans: what ran when, up to the first step.
        busy_cores: that others kept busy just before the trigger; None where nobody looked.
        start_mode: `cold`, `warm` or `in process`.
    """

    model_config = ConfigDict(allow_inf_nan=False)  # which JSON has not

    scenario: str
    repeat: int
    flow_run_id: str
    triggered_at: float
    ttfs_s: float
    idle_s: float | None = None
    waited_s: float | None = None
    phases: dict[str, float]
    bounds: dict[str, str] = Field(default_factory=dict)
    bounds_s: dict[str, float] = Field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    busy_cores: float | None = None
    start_mode: str = "warm"
    cache_reused: bool | None = None

    @classmethod
    def of(cls, breakdown: Breakdown, **known: Any) -> RunRecord:
        """The record of a run that took a step; `known` is what its breakdown does not say."""
        assert breakdown.ttfs_s is not None
        first_step_at = breakdown.triggered_at + breakdown.ttfs_s
        return cls(
            triggered_at=breakdown.triggered_at,
            ttfs_s=breakdown.ttfs_s,
            idle_s=breakdown.idle_s,
            waited_s=breakdown.waited_s,
            phases={phase.phase: phase.seconds for phase in breakdown.phases},
            bounds={phase.phase: phase.bound for phase in breakdown.phases},
            spans=tuple(span for span in breakdown.spans if span.start < first_step_at),
            start_mode=breakdown.start_mode,
            cache_reused=breakdown.cache_reused,
            **known,
        )

    def seconds(self, *phases: str) -> float:
        """Of these phases together; one that the run did without took it no time."""
        return sum(self.phases.get(phase, 0.0) for phase in phases)


def idle_seconds(runs: Iterable[RunRecord]) -> list[float]:
    """Of the runs of which it is known."""
    return [run.idle_s for run in runs if run.idle_s is not None]


class BenchmarkRecord(Model):
    """One benchmark: its runs, and all that its figures depend on.

    Attributes:
        started_at: Unix time in seconds.
        machine_id: hash of what makes two machines' times incomparable (processor, cores, RAM,
            GPU, disk kind).
        machine: the facts behind it, in words.
        versions: of the packages that matter.
        commit: of the code, `-dirty` at its end where files were changed.
        settings: what else times depend on (num_trajectories, page cache, …).
        runs: in the order in which they ran.
    """

    id: str
    started_at: float
    flow_run_id: str | None = None
    machine_id: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    settings: dict[str, Any]
    runs: tuple[RunRecord, ...] = ()

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The names of those that ran, in the order of their first runs."""
        return tuple(dict.fromkeys(run.scenario for run in self.runs))

    def runs_of(self, scenario: str) -> list[RunRecord]:
        return [run for run in self.runs if run.scenario == scenario]

    def is_comparable(self, other: BenchmarkRecord) -> bool:
        """Whether both ran on the same machine with equal settings."""
        return (self.machine_id, self.settings) == (other.machine_id, other.settings)


def new_record(
    config: str, num_trajectories: int, page_cache: PageCache, folder: Path, run_id: str | None
) -> BenchmarkRecord:
    """A benchmark that has no runs yet.

    Raises:
        HistoryError: its folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HistoryError(
            f"{folder} cannot be made: {error}. Expected a folder that this process may write"
        ) from error
    facts = host.record(folder)
    return BenchmarkRecord(
        id=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}",
        started_at=time.time(),
        flow_run_id=run_id,
        machine_id=host.identity(folder),
        machine={name: facts[name] for name in MACHINE_FACTS},
        versions=host.versions(),
        commit=host.commit(),
        settings={
            "config": config,
            "config digest": config_digest(load_config(config)),
            "num_trajectories": num_trajectories,
            "page cache": setting(page_cache),
        },
    )


def config_digest(config: RunConfig) -> str:
    """Hash what times depend on; a default counts as nothing, so a new field changes nothing."""
    values = config.model_dump(mode="json", exclude=WITHOUT_EFFECT, exclude_defaults=True)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def estimate_duration(
    record: BenchmarkRecord, names: Sequence[str], repeats: int, history: Iterable[BenchmarkRecord]
) -> str:
    """Say how many runs there will be, and how long they take if they do as earlier ones did.

    Args:
        history: the newest first; the latest comparable ones count.
    """
    num = len(names) * repeats
    alike = [benchmark for benchmark in history if benchmark.is_comparable(record)][:NUM_RECENT]
    known = [
        statistics.median(found)
        for name in names
        if (found := [run.ttfs_s for benchmark in alike for run in benchmark.runs_of(name)])
    ]
    of_run_s = statistics.mean(known) + BESIDE_S if known else UNKNOWN_RUN_S
    source = "by earlier benchmarks"
    if not known:
        source = (
            f"at {UNKNOWN_RUN_S:g} s a run; more than 512 trajectories take longer, and there is "
            "no earlier benchmark of this machine and these settings to tell by"
        )
    runs = f"{num} runs: {', '.join(names)}, {repeats} each"
    return f"{runs}; about {max(1, round(num * of_run_s / 60))} min, {source}"
