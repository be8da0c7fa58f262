"""What the plan asks of three runs, and what this project asks of itself: target beside figure.

The plan: "Launch 3 runs with the same config: full generation; reused, under 30 s overhead; third
with another latent.dim: regenerated."
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ups.config import Model
from ups.startup.compare import BASELINE, Comparison
from ups.startup.critical_path import UNACCOUNTED
from ups.startup.records import RunRecord

PLAN_REUSE_S, OUR_REUSE_S = 30.0, 1.0
OUTSIDE = ("queue", "boot")
# Below this a phase is a state change or two, and longer or shorter by chance.
LEAST_S = 0.1


class Criterion(Model):
    """
    Attributes:
        source: who asks for it: `plan` or `ours`.
    """

    source: str
    asks: str
    target: str
    measured: str
    is_met: bool


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
        beyond_s = statistics.median(
            run.ttfs_s - sum(run.phases.get(phase, 0.0) for phase in OUTSIDE) for run in warm
        )
        found.append(_less("ours", "of it beyond queue and boot", beyond_s, OUR_REUSE_S))
    if changed := of.get("changed-config"):
        found.append(_cache("another latent.dim builds it anew", changed, reused=False))
    if cold and (legacy := of.get(BASELINE)):
        found.append(_shorter(_medians(cold), _medians(legacy)))
    return tuple(found)


def criteria_rows(criteria: Sequence[Criterion]) -> list[dict[str, str]]:
    return [
        {
            "asked by": criterion.source,
            "what": criterion.asks,
            "target": criterion.target,
            "measured": criterion.measured,
            "met": "✓" if criterion.is_met else "✗",
        }
        for criterion in criteria
    ]


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


def _medians(runs: Sequence[RunRecord]) -> Mapping[str, float]:
    phases = {phase for run in runs for phase in run.phases}
    return {p: statistics.median(run.phases.get(p, 0.0) for run in runs) for p in phases}


def _shorter(cold: Mapping[str, float], legacy: Mapping[str, float]) -> Criterion:
    """Of the phases that legacy has and that take long enough to tell."""
    longer = {
        phase: (cold[phase], seconds)
        for phase, seconds in legacy.items()
        if phase in cold
        and phase not in (*OUTSIDE, UNACCOUNTED)
        and cold[phase] > seconds
        and cold[phase] >= LEAST_S
    }
    measured = ", ".join(f"{p} {ours:.2f} s, {old:.2f} s" for p, (ours, old) in longer.items())
    return Criterion(
        source="ours",
        asks=f"cold is shorter than {BASELINE} in every phase",
        target="all",
        measured=(measured and f"longer: {measured}") or "all",
        is_met=not longer,
    )
