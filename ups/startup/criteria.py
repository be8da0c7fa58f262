"""What the plan asks of three runs, and what this project asks of itself: target beside figure.

The plan: "Launch 3 runs with the same config: full generation; reused, under 30 s overhead; third
with another latent.dim: regenerated."
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ups.config import Model
from ups.startup import wording
from ups.startup.compare import BASELINE, Comparison
from ups.startup.records import RunRecord
from ups.startup.stats import Ratio, bootstrap_ratio

PLAN_REUSE_S, OUR_REUSE_S = 30.0, 1.0
OUTSIDE = ("queue", "boot")
# Phases in which cold and legacy do the same work: what cold loads and warms up beforehand, legacy
# reads and builds in its first step.
SAME_WORK = (("download",), ("cache",), ("load", "warm-up", "first step"))


class Criterion(Model):
    """
    Attributes:
        source: who asks for it: `plan` or `ours`.
        is_met: None where that cannot be told.
        factor: how many times as long `legacy` takes, where that is what is asked.
    """

    source: str
    asks: str
    target: str
    measured: str
    is_met: bool | None
    factor: Ratio | None = None


def check(comparison: Comparison, runs: Sequence[RunRecord]) -> tuple[Criterion, ...]:
    """Those whose scenarios ran."""
    of = {s.name: [run for run in runs if run.scenario == s.name] for s in comparison.scenarios}
    found: list[Criterion] = []
    if cold := of.get("cold"):
        found.append(_cache("a first run builds the cache", cold, reused=False))
    if warm := of.get("warm"):
        ttfs_s = statistics.median(run.ttfs_s for run in warm)
        found.append(_cache("the same config again reuses it", warm, reused=True))
        found.append(_less("plan", "time to first step of that", ttfs_s, PLAN_REUSE_S))
        beyond_s = statistics.median(run.ttfs_s - _seconds(run, OUTSIDE) for run in warm)
        found.append(_less("ours", "of it beyond queue and boot", beyond_s, OUR_REUSE_S))
    if changed := of.get("changed-config"):
        found.append(_cache("another latent.dim builds it anew", changed, reused=False))
    if cold and (legacy := of.get(BASELINE)):
        found += _factors(cold, legacy, comparison.record.settings.get("num_trajectories"))
    return tuple(found)


def criteria_rows(criteria: Sequence[Criterion]) -> list[dict[str, str]]:
    marks = {True: "✓", False: "✗", None: "cannot tell"}
    return [
        {
            "asked by": criterion.source,
            "what": criterion.asks,
            "target": criterion.target,
            "measured": criterion.measured,
            "met": marks[criterion.is_met],
        }
        for criterion in criteria
    ]


def as_data(comparison: Comparison, criteria: Sequence[Criterion]) -> dict[str, Any]:
    """Both in one, for JSON."""
    return {**comparison.model_dump(), "criteria": [c.model_dump() for c in criteria]}


def _cache(asks: str, runs: Sequence[RunRecord], *, reused: bool) -> Criterion:
    as_asked = sum(run.cache_reused is reused for run in runs)
    return Criterion(
        source="plan",
        asks=asks,
        target="reused" if reused else "built",
        measured=f"{as_asked} of {len(runs)} runs",
        is_met=as_asked == len(runs),
    )


def _less(source: str, asks: str, seconds: float, most_s: float) -> Criterion:
    return Criterion(
        source=source,
        asks=asks,
        target=f"< {most_s:g} s",
        measured=f"{seconds:.2f} s",
        is_met=seconds < most_s,
    )


def _factors(
    cold: Sequence[RunRecord], legacy: Sequence[RunRecord], num_trajectories: int | None
) -> list[Criterion]:
    """That cold is shorter than legacy: in all, and where they do the same work."""
    size = "" if num_trajectories is None else f", N = {num_trajectories:,}"
    pairs = {"in all": ([r.ttfs_s for r in legacy], [r.ttfs_s for r in cold])}
    for phases in SAME_WORK:
        theirs, ours = ([_seconds(run, phases) for run in runs] for runs in (legacy, cold))
        if min(*theirs, *ours) > 0:
            pairs[" + ".join(phases)] = theirs, ours
    return [
        _shorter(f"{BASELINE} over cold{size}: {what}", bootstrap_ratio(theirs, ours))
        for what, (theirs, ours) in pairs.items()
    ]


def _shorter(asks: str, factor: Ratio) -> Criterion:
    """Met, or not, only where the interval lies on one side of 1."""
    cannot_tell = math.isnan(factor.low) or factor.low <= 1 <= factor.high
    return Criterion(
        source="ours",
        asks=asks,
        target="> 1×",
        measured=wording.times(factor),
        is_met=None if cannot_tell else factor.low > 1,
        factor=factor,
    )


def _seconds(run: RunRecord, phases: Sequence[str]) -> float:
    return sum(run.phases.get(phase, 0.0) for phase in phases)
