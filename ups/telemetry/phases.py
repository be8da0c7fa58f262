"""The overhead breakdown: where every second between trigger and first optimizer step went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ups.config import Model
from ups.files import write_atomically
from ups.telemetry.gpu import GpuUse

STOPPED = "by a signal, as cancelling does"  # `failed` of a run that somebody ended
STARTUP_PHASES = (
    "queue",
    "boot",
    "validate",
    "download",
    "warm-up",
    "cache",
    "load",
    "first step",
)
PROVISION = "provision"
TO_FIRST_STEP = f"{PROVISION}/to_first_step"
PROVISION_BOUNDS = {
    "clone": "network: one commit",
    "install": "network: locked packages that the image lacks",
    "worker": "worker and warm process import Prefect and torch",
    "deploy": "`prefect deploy`, once per server: it imports Prefect and the flow",
}


class Span(Model):
    """One stretch of work. Times are Unix times in seconds."""

    phase: str
    name: str
    start: float
    end: float
    state: str = "Completed"

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Phase(Model):
    """A row of the breakdown: the wall time that a phase's spans cover before the first step.

    `share` is of the time from trigger to first step; None for what came before the trigger.
    """

    phase: str
    seconds: float
    share: float | None
    bound: str


class TaskFigures(Model):
    """Of one of several tasks; None where the run did not get that far."""

    config_hash: str | None
    cache_reused: bool | None
    nrmse_rollout: float | None
    nrmse_persistence: float | None


class Breakdown(Model):
    """What `breakdown.json` holds.

    Attributes:
        config_hash: of the cache entry, or of the entries, with commas between.
        cache_reused: whether all entries were there.
        tasks: name → its figures, where there are several; the nRMSE here are their means.
        ttfs_s: trigger to first step; None where the run did not get that far.
        until_s: trigger to the end of the startup: the first step, else the failure.
        start_mode: `cold` in a fresh interpreter, `warm` forked from one kept ready.
        unaccounted_s: the part of that which no span covers.
        cost_usd: of the startup and, since it is paid for too, of what came before the trigger.
        phase_bytes: phase → the bytes that it moved: fetched, written, read.
        changed: the fields of the cache key that differ from the nearest entry's, on a miss.
        gpu: phase → what the GPU did in it, `first epoch` among them; None without samples.
        gpu_note: why there are none, or no more.
        provision: what the machine did before the trigger, if this is its first run.
    """

    run: str
    config: str
    config_hash: str | None
    start_mode: str
    triggered_at: float
    ttfs_s: float | None
    until_s: float
    unaccounted_s: float
    cost_usd: float
    cache_reused: bool | None
    changed: tuple[str, ...] = ()
    failed: str | None = None
    phases: tuple[Phase, ...]
    phase_bytes: dict[str, int] = Field(default_factory=dict)
    spans: tuple[Span, ...]
    provision: tuple[Span, ...] = ()
    metrics: dict[str, float]
    gpu: dict[str, GpuUse] | None = None
    gpu_note: str = ""
    nrmse_rollout: float | None = None
    nrmse_persistence: float | None = None
    tasks: dict[str, TaskFigures] = Field(default_factory=dict)

    def save(self, run_dir: Path) -> Path:
        path = run_dir / "breakdown.json"
        text = json.dumps(self.model_dump(mode="json"), indent=1)
        write_atomically(path, text.encode(), durable=False)
        return path


def covered(spans: Iterable[Span], start: float, end: float) -> float:
    """Seconds of [start, end] that at least one span covers."""
    total, reached = 0.0, start
    for span in sorted(spans, key=lambda s: s.start):
        begin, stop = max(span.start, reached), min(span.end, end)
        if stop > begin:
            total += stop - begin
            reached = stop
    return total


def tabulate(
    spans: Sequence[Span], bounds: dict[str, str], start: float, end: float
) -> tuple[Phase, ...]:
    """A row per startup phase, then `unaccounted`; phases overlap, so shares may exceed 100 %.

    Args:
        bounds: phase → what bounds it, in words.
        start, end: of the startup, Unix times in seconds.
    """
    total = max(end - start, 1e-9)
    rows = []
    for phase in STARTUP_PHASES:
        of_phase = [span for span in spans if span.phase == phase]
        if of_phase:
            seconds = covered(of_phase, start, end)
            rows.append((phase, seconds, bounds.get(phase, "")))
    rows.append(("unaccounted", total - covered(spans, start, end), "between the phases"))
    return tuple(
        Phase(phase=name, seconds=seconds, share=seconds / total, bound=bound)
        for name, seconds, bound in rows
    )


def provision_s(spans: Sequence[Span]) -> float:
    """Seconds that the phases before the trigger cover."""
    if not spans:
        return 0.0
    return covered(spans, min(span.start for span in spans), max(span.end for span in spans))


def tabulate_provision(
    spans: Sequence[Span], first_step_at: float | None = None
) -> tuple[Phase, ...]:
    """A row per phase before the trigger, then what all cover; none of them is part of the TTFS.

    The last row leads to the first step, if it was taken at that Unix time.
    """
    if not spans:
        return ()
    rows = [(span.phase, span.seconds, PROVISION_BOUNDS.get(span.name, "")) for span in spans]
    rows.append(
        (PROVISION, provision_s(spans), "all before the trigger; worker and deploy overlap")
    )
    if first_step_at is not None:
        to_first_step_s = first_step_at - min(span.start for span in spans)
        rows.append((TO_FIRST_STEP, to_first_step_s, "from the script's start to the first step"))
    return tuple(
        Phase(phase=name, seconds=seconds, share=None, bound=bound) for name, seconds, bound in rows
    )


def plan_metrics(
    *, cache_s: float, cache_reused: bool, startup_s: float, ttfs_s: float | None, cost_usd: float
) -> dict[str, float]:
    """The plan's metrics, under the plan's names and in its units, and the two that we add.

    Args:
        startup_s: from the launch on; `ttfs_s` counts from the trigger.
    """
    metrics: dict[str, Any] = {
        "startup/cache_precompute_time_min": cache_s / 60,
        "startup/cache_reused": float(cache_reused),
        "startup/total_startup_time_min": startup_s / 60,
        "startup/cost_usd": cost_usd,
    }
    if ttfs_s is not None:
        metrics["startup/ttfs_s"] = ttfs_s
    return metrics
