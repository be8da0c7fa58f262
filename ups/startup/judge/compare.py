"""The comparison of a benchmark's scenarios with each other and with its history, as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

from ups.config import Model
from ups.runs.critical_path import Step, critical_path, in_order, seconds_by_phase
from ups.startup.judge.criteria import BASELINE, Criterion, check
from ups.startup.judge.history import JudgedBenchmark
from ups.startup.judge.next_phase import NextPhase, next_to_improve
from ups.startup.judge.stats import Interval, Ratio, bootstrap_difference, bootstrap_ratio
from ups.startup.judge.verdict import Verdict
from ups.startup.measure.records import BenchmarkRecord, RunRecord, idle_seconds
from ups.startup.measure.scenarios import BASES

BUSY_CORES = 0.75  # server, store and worker were seen to take up to 0.4 between two runs


class Spread(Model):
    """Seconds of several runs."""

    median: float
    smallest: float
    largest: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        median = statistics.median(values)
        return cls(median=median, smallest=min(values), largest=max(values), num=len(values))


class PhaseSummary(Model):
    """A phase of a scenario.

    Attributes:
        seconds: that it covers, whether anything waited for it or not.
        critical_s: of it on the critical path, as a mean over the middle runs.
        to_baseline: seconds of `legacy` ÷ seconds of this scenario; None where one has none.
        bound: what bounds it, in words.
        bound_s: the least seconds that it needs, where measured.
    """

    phase: str
    seconds: Spread
    critical_s: float
    to_baseline: Ratio | None = None
    bound: str = ""
    bound_s: float | None = None


class ScenarioSummary(Model):
    """A scenario over all its runs.

    Attributes:
        flow_run_ids: in the order in which they ran.
        idle: the seconds without work until the end of the first epoch; None where no run knows.
        phases: their `critical_s` add up to the median TTFS.
        to_baseline: TTFS of `legacy` ÷ TTFS of this scenario; None for `legacy` itself.
        middle: the flow run whose TTFS is nearest the median; `path` is its critical path.
        next: the phase to work on next; None where every phase is at its bound.
        next_measured: the same of those whose bound was measured: how much of the others could be
            saved is not known.
    """

    name: str
    flow_run_ids: tuple[str, ...]
    ttfs: Spread
    idle: Spread | None = None
    phases: tuple[PhaseSummary, ...]
    to_baseline: Ratio | None
    middle: str
    path: tuple[Step, ...]
    next: NextPhase | None
    next_measured: NextPhase | None = None


class Share(Model):
    """What an optimisation is worth: the seconds that TTFS grows by without it.

    Attributes:
        scenario: the one that goes without it.
        base: the scenario that it is compared with, in which everything is on.
        percent: of the base's median TTFS.
        idle: the seconds that the idle time grows by; None where a side knows none.
    """

    scenario: str
    base: str
    seconds: Interval
    percent: float
    idle: Interval | None = None

    @property
    def optimisation(self) -> str:
        """What the scenario goes without: `stream` of `no-stream-changed-config`."""
        return self.scenario.removeprefix("no-").removesuffix(f"-{self.base}")

    @property
    def effect(self) -> Literal["saves time", "costs time", "within the noise", "one run only"]:
        """What to make of it; `within the noise` where the interval holds 0."""
        if math.isnan(self.seconds.low):
            return "one run only"
        if self.seconds.low <= 0 <= self.seconds.high:
            return "within the noise"
        return "saves time" if self.seconds.value > 0 else "costs time"


class TrendPoint(Model):
    """A scenario in one benchmark of the history; `at` is a Unix time in seconds.

    Attributes:
        idle_s: the median of the idle seconds; None where no run knows them.
        worse, idle_worse: than their history.
    """

    scenario: str
    at: float
    ttfs: Spread
    idle_s: float | None = None
    worse: bool = False
    idle_worse: bool = False


class OtherLoad(Model):
    """What else kept the machine busy: before how many of the runs, and at most how many cores."""

    num_runs: int
    of_runs: int
    most_cores: float


class Comparison(Model):
    """What a person sees of a benchmark: text, tables and pictures show it.

    Attributes:
        record: the benchmark without its runs; `scenarios` has what is shown of them.
        verdicts: of each scenario's TTFS and idle seconds, against the history.
        trend: in order of time.
        other_load: where it was enough to matter.
    """

    record: BenchmarkRecord
    scenarios: tuple[ScenarioSummary, ...]
    shares: tuple[Share, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    trend: tuple[TrendPoint, ...] = ()
    other_load: OtherLoad | None = None
    criteria: tuple[Criterion, ...] = ()


def compare(benchmark: JudgedBenchmark, history: Iterable[JudgedBenchmark] = ()) -> Comparison:
    """Summarise a benchmark: its scenarios in their own order, those that are unknown last.

    Args:
        history: what the trend is taken from; the benchmark is in it only if it is among these.
    """
    order = [name for name in (*BASES, *benchmark.scenarios) if name in benchmark.scenarios]
    runs = {
        name: sorted(benchmark.runs_of(name), key=lambda run: run.triggered_at) for name in order
    }
    baseline = runs.get(BASELINE, [])
    shares = [
        _share(name, base, of_scenario, runs[base])
        for name, of_scenario in runs.items()
        if (base := BASES.get(name)) is not None and base in runs
    ]
    return Comparison(
        record=benchmark.model_copy(update={"runs": ()}),
        scenarios=tuple(_summary(name, found, baseline) for name, found in runs.items()),
        shares=tuple(shares),
        verdicts=benchmark.verdicts,
        trend=_trend(benchmark, history),
        other_load=_other_load(benchmark.runs),
        criteria=check(runs, benchmark.settings.get("num_trajectories")),
    )


def _summary(
    name: str, runs: Sequence[RunRecord], baseline: Sequence[RunRecord]
) -> ScenarioSummary:
    ttfs = [run.ttfs_s for run in runs]
    # The run of median TTFS, or the two around it, whose mean is the median.
    ranked = sorted(runs, key=lambda run: run.ttfs_s)
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    paths = [critical_path(r.spans, r.triggered_at, r.triggered_at + r.ttfs_s) for r in middle]
    critical = [seconds_by_phase(path) for path in paths]
    bounds_s = {
        phase: statistics.median([run.bounds_s[phase] for run in runs if phase in run.bounds_s])
        for phase in in_order(phase for run in runs for phase in run.bounds_s)
    }
    against = () if name == BASELINE else baseline
    summaries = []
    for phase in in_order(p for known in (*(r.phases for r in runs), *critical) for p in known):
        seconds = [run.seconds(phase) for run in runs]
        summaries.append(
            PhaseSummary(
                phase=phase,
                seconds=Spread.of(seconds),
                critical_s=math.fsum(c.get(phase, 0.0) for c in critical) / len(critical),
                to_baseline=_ratio([run.seconds(phase) for run in against], seconds),
                bound=middle[0].bounds.get(phase, ""),
                bound_s=bounds_s.get(phase),
            )
        )
    return ScenarioSummary(
        name=name,
        flow_run_ids=tuple(run.flow_run_id for run in runs),
        ttfs=Spread.of(ttfs),
        idle=Spread.of(idle_s) if (idle_s := idle_seconds(runs)) else None,
        phases=tuple(summaries),
        to_baseline=_ratio([run.ttfs_s for run in against], ttfs),
        middle=middle[0].flow_run_id,
        path=paths[0],
        next=next_to_improve(paths[0], bounds_s),
        next_measured=next_to_improve(paths[0], bounds_s, measured_only=True),
    )


def _ratio(above: Sequence[float], below: Sequence[float]) -> Ratio | None:
    """The ratio of the medians; None where a side has no runs, or one of no seconds."""
    if not above or not below or min(*above, *below) <= 0:
        return None
    return bootstrap_ratio(above, below)


def _share(name: str, base: str, off: Sequence[RunRecord], on: Sequence[RunRecord]) -> Share:
    without, with_it = [run.ttfs_s for run in off], [run.ttfs_s for run in on]
    seconds = bootstrap_difference(without, with_it)
    percent = 100 * seconds.value / statistics.median(with_it)
    idle_off, idle_on = idle_seconds(off), idle_seconds(on)
    idle = bootstrap_difference(idle_off, idle_on) if idle_off and idle_on else None
    return Share(scenario=name, base=base, seconds=seconds, percent=percent, idle=idle)


def _trend(
    benchmark: BenchmarkRecord, history: Iterable[JudgedBenchmark]
) -> tuple[TrendPoint, ...]:
    """A point for each of its scenarios in each benchmark that can be compared with it."""
    points = []
    for other in history:
        worse = {(v.scenario, v.figure) for v in other.verdicts if v.kind == "worse"}
        for name in benchmark.scenarios if other.is_comparable(benchmark) else ():
            if runs := other.runs_of(name):
                idle_s = idle_seconds(runs)
                points.append(
                    TrendPoint(
                        scenario=name,
                        at=other.started_at,
                        ttfs=Spread.of([run.ttfs_s for run in runs]),
                        idle_s=statistics.median(idle_s) if idle_s else None,
                        worse=(name, "TTFS") in worse,
                        idle_worse=(name, "idle") in worse,
                    )
                )
    return tuple(sorted(points, key=lambda point: point.at))


def _other_load(runs: Sequence[RunRecord]) -> OtherLoad | None:
    loads = [run.busy_cores for run in runs if run.busy_cores is not None]
    busy = [cores for cores in loads if cores >= BUSY_CORES]
    return OtherLoad(num_runs=len(busy), of_runs=len(runs), most_cores=max(busy)) if busy else None
