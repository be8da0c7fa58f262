"""What the plan asks of three runs, and what this project asks of itself: target beside figure.

The plan: "Launch 3 runs with the same config: full generation; reused, under 30 s overhead; third
with another latent.dim: regenerated."
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ups.config import Model
from ups.runs.breakdown import IDLE
from ups.startup.judge.stats import Ratio, bootstrap_ratio
from ups.startup.measure.records import RunRecord, idle_seconds

BASELINE = "legacy"
PLAN_REUSE_S, OUR_REUSE_S = 30.0, 1.0
OUTSIDE = ("queue", "boot")
# Phases in which cold and legacy do the same work: what cold loads and warms up beforehand, legacy
# reads and builds in its first step.
SAME_WORK = (("download",), ("cache",), ("load", "warm-up", "first rows", "first step"))


class Criterion(Model):
    """One thing that is asked of a benchmark, and what it measured.

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


def check(
    runs: Mapping[str, Sequence[RunRecord]], num_trajectories: int | None = None
) -> tuple[Criterion, ...]:
    """The criteria of which the scenarios ran.

    Args:
        runs: scenario → its runs.
        num_trajectories: that were trained on, to be named where it is known.
    """
    found: list[Criterion] = []
    cold, legacy = runs.get("cold", ()), runs.get(BASELINE, ())
    if cold:
        found.append(_cache("a first run builds the cache", cold, reused=False))
    if warm := runs.get("warm"):
        ttfs_s = statistics.median(run.ttfs_s for run in warm)
        found.append(_cache("the same config again reuses it", warm, reused=True))
        found.append(_less("plan", "time to first step of that", ttfs_s, PLAN_REUSE_S))
        beyond_s = statistics.median(run.ttfs_s - run.seconds(*OUTSIDE) for run in warm)
        found.append(_less("ours", "of it beyond queue and boot", beyond_s, OUR_REUSE_S))
    if changed := runs.get("changed-config"):
        found.append(_cache("another latent.dim builds it anew", changed, reused=False))
    if cold and legacy:
        size = "" if num_trajectories is None else f", N = {num_trajectories:,}"
        asks = f"{BASELINE} over cold{size}"
        in_all = bootstrap_ratio([run.ttfs_s for run in legacy], [run.ttfs_s for run in cold])
        found.append(_longer(f"{asks}: in all", in_all))
        idle_s = idle_seconds(legacy), idle_seconds(cold)
        if all(idle_s):
            found.append(_longer(f"{asks}: {IDLE}", bootstrap_ratio(*idle_s)))
        for phases in SAME_WORK:
            theirs, ours = ([run.seconds(*phases) for run in of] for of in (legacy, cold))
            if min(*theirs, *ours) > 0:
                found.append(
                    _longer(f"{asks}: {' + '.join(phases)}", bootstrap_ratio(theirs, ours))
                )
    return tuple(found)


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


def _longer(asks: str, factor: Ratio) -> Criterion:
    """Met, or not, only where the interval lies on one side of 1."""
    cannot_tell = math.isnan(factor.low) or factor.low <= 1 <= factor.high
    return Criterion(
        source="ours",
        asks=asks,
        target="> 1×",
        measured=str(factor),
        is_met=None if cannot_tell else factor.low > 1,
        factor=factor,
    )
