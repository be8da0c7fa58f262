"""What a startup benchmark measured: one record per run, and one per benchmark that holds them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ups.config import Model
from ups.telemetry.phases import Span


class RunRecord(Model):
    """One run of a scenario, from its breakdown.

    Attributes:
        triggered_at: Unix time in seconds.
        phases: phase → the wall seconds that it covers between trigger and first step,
            `unaccounted` included.
        bounds: phase → what bounds it, in words.
        bounds_s: phase → the least seconds that this machine needs for the phase's bytes, where
            that was measured.
        spans: what ran when, up to the first step.
        busy_cores: that others kept busy just before the trigger; None where nobody looked.
        start_mode: `cold`, `warm` or `in process`.
    """

    scenario: str
    repeat: int
    flow_run_id: str
    triggered_at: float
    ttfs_s: float
    phases: dict[str, float]
    bounds: dict[str, str] = Field(default_factory=dict)
    bounds_s: dict[str, float] = Field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    busy_cores: float | None = None
    start_mode: str = "warm"
    cache_reused: bool | None = None


class BenchmarkRecord(Model):
    """One benchmark: its runs, and all that its figures depend on.

    Attributes:
        machine_id: hash of what makes two machines' times incomparable (processor, cores, RAM,
            GPU, disk kind).
        machine: the record behind it, in words.
        versions: of the packages that matter.
        commit: of the code, `-dirty` at its end where files were changed.
        settings: what else times depend on (num_trajectories, page cache, …): only benchmarks of
            equal machine and settings are compared.
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
