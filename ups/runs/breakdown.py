"""The overhead breakdown: where every second between trigger and first optimizer step went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from ups.config import Model
from ups.machine.gpu import GpuUse, in_words
from ups.runs.stored import Stored

IDLE = "idle until epoch 2"  # in words: `idle_s`
STOPPED = "by a signal, as cancelling does"  # `failed` of a run that somebody ended
STARTUP_PHASES = (
    *("queue", "boot", "validate", "download", "warm-up", "cache", "load"),
    *("ranks", "rendezvous", "first rows", "first step"),
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


class ProblemFigures(Model):
    """What one of several problems came to; None where the run did not get that far."""

    config_hash: str | None
    cache_reused: bool | None
    nrmse_rollout: float | None
    nrmse_persistence: float | None


class Breakdown(Stored):
    """What `breakdown.json` holds: read it with `load`, which takes every version's.

    Attributes:
        config_hash: of the cache entry, or of the entries, with commas between.
        cache_reused: whether all entries were there.
        problems: name → its figures, where there are several; the nRMSE here are their means.
        ttfs_s: trigger to first step; None where the run did not get that far.
        until_s: trigger to the end of the startup: the first step, else the failure.
        idle_s: from the trigger to the end of the first epoch's steps, the part in which the device
            had no step to compute; None before that, and where max_steps cut that epoch short.
        waited_s: of it, what a step waited for trajectories that were on their way.
        start_mode: `cold` in a fresh interpreter, `warm` forked from one kept ready.
        waited_for: phase → its seconds on the critical path: what the first step waited for. They
            add up to `ttfs_s`; empty without a first step.
        unaccounted_s: the part of that which no span covers.
        cost_usd: of the startup and, since it is paid for too, of what came before the trigger.
        phase_bytes: phase → the bytes that it moved: fetched, written, read.
        changed: the fields of the cache key that differ from the nearest entry's, on a miss.
        gpu: phase → what the GPU did in it, `first epoch` among them; None without samples.
        gpu_note: why there are none, or no more.
        provision: what the machine did before the trigger, if this is its first run.
        awaited: figures that were not known yet when this was written → when they come to be.
    """

    FILE: ClassVar[str] = "breakdown.json"

    run: str
    config: str
    config_hash: str | None
    start_mode: str
    triggered_at: float
    ttfs_s: float | None
    until_s: float
    idle_s: float | None = None
    waited_s: float | None = None
    waited_for: dict[str, float] = Field(default_factory=dict)
    unaccounted_s: float
    cost_usd: float
    cache_reused: bool | None
    changed: tuple[str, ...] = ()
    failed: str | None = None
    phases: tuple[Phase, ...]
    phase_bytes: dict[str, int] = Field(default_factory=dict)
    spans: tuple[Span, ...]
    provision: tuple[Span, ...] = ()
    awaited: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float]
    gpu: dict[str, GpuUse] | None = None
    gpu_note: str = ""
    nrmse_rollout: float | None = None
    nrmse_persistence: float | None = None
    problems: dict[str, ProblemFigures] = Field(default_factory=dict, alias="tasks")

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Phase → seconds, of the rows of the table."""
        return {row.phase: row.seconds for row in self.phases}

    @property
    def gpu_words(self) -> str:
        """What the GPU did in the first epoch, or why nobody knows."""
        return in_words(self.gpu, self.gpu_note)


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
    spans: Sequence[Span], bounds: Mapping[str, str], start: float, end: float
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
