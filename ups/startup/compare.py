"""The comparison of a benchmark's scenarios, and the difference of two benchmarks, as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ups.config import Model
from ups.startup.critical_path import (
    NextPhase,
    Step,
    critical_path,
    in_order,
    next_to_improve,
    seconds_by_phase,
)
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.startup.stats import Difference, Ratio, bootstrap_difference, bootstrap_ratio
from ups.startup.verdict import Verdict

BASELINE = "legacy"
BUSY_CORES = 0.75  # server, store and worker were seen to take up to 0.4 between two runs


class Spread(Model):
    """Seconds of several runs."""

    median: float
    smallest: float
    largest: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(
            median=statistics.median(values),
            smallest=min(values),
            largest=max(values),
            num=len(values),
        )


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

    @property
    def times_bound(self) -> float | None:
        """How many times its bound it took."""
        return self.seconds.median / self.bound_s if self.bound_s else None


class ScenarioSummary(Model):
    """A scenario over all its runs.

    Attributes:
        flow_run_ids: in the order in which they ran.
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
    """

    scenario: str
    base: str
    seconds: Difference
    percent: float

    @property
    def optimisation(self) -> str:
        """What the scenario goes without: `warm_up` of `no-warm_up`."""
        return self.scenario.removeprefix("no-")

    @property
    def effect(self) -> Literal["saves time", "costs time", "within the noise", "one run only"]:
        """What to make of it; `within the noise` where the interval holds 0."""
        if math.isnan(self.seconds.low):
            return "one run only"
        if self.seconds.low <= 0 <= self.seconds.high:
            return "within the noise"
        return "saves time" if self.seconds.value > 0 else "costs time"


class TrendPoint(Model):
    """A scenario's TTFS in one benchmark of the history; `at` is a Unix time in seconds."""

    scenario: str
    at: float
    ttfs: Spread
    worse: bool = False


class OtherLoad(Model):
    """What else kept the machine busy: before how many of the runs, and at most how many cores."""

    num_runs: int
    of_runs: int
    most_cores: float


class Comparison(Model):
    """What a person sees of a benchmark: `markdown`, `tables` and `pictures` show it.

    Attributes:
        record: the benchmark; its runs are not kept twice, `scenarios` has what is shown of them.
        verdicts: one per scenario, against the history.
        trend: in order of time.
        other_load: where it was enough to matter.
    """

    record: BenchmarkRecord
    scenarios: tuple[ScenarioSummary, ...]
    shares: tuple[Share, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    trend: tuple[TrendPoint, ...] = ()
    other_load: OtherLoad | None = None


class Change(Model):
    """What became of a phase, or with `phase=None` of TTFS; None where a benchmark lacks it.

    Of a scenario that only one of them has, there is TTFS alone.
    """

    scenario: str
    phase: str | None
    before: Spread | None
    after: Spread | None
    seconds: Difference | None


class Changes(Model):
    """Two benchmarks beside each other.

    Attributes:
        reasons: why their times cannot be compared, in words; empty where they can.
    """

    before: BenchmarkRecord
    after: BenchmarkRecord
    rows: tuple[Change, ...]
    reasons: tuple[str, ...]


def compare(
    record: BenchmarkRecord,
    bases: Mapping[str, str | None],
    verdicts: Sequence[Verdict] = (),
    trend: Sequence[TrendPoint] = (),
) -> Comparison:
    """Summarise a benchmark; of the scenarios in `bases`, those that ran.

    Args:
        bases: scenario → the one that it is compared with, None for those that stand alone; its
            order is the order of what is shown.
    """
    runs = _runs_by_scenario(record.runs, bases)
    baseline = runs.get(BASELINE, ())
    shares = [
        _share(name, base, of_scenario, runs[base])
        for name, of_scenario in runs.items()
        if (base := bases.get(name)) is not None and base in runs
    ]
    return Comparison(
        record=record.model_copy(update={"runs": ()}),
        scenarios=tuple(_summary(name, found, baseline) for name, found in runs.items()),
        shares=tuple(shares),
        verdicts=tuple(verdicts),
        trend=tuple(sorted(trend, key=lambda point: point.at)),
        other_load=_other_load(record.runs),
    )


def _other_load(runs: Sequence[RunRecord]) -> OtherLoad | None:
    loads = [run.busy_cores for run in runs if run.busy_cores is not None]
    busy = [cores for cores in loads if cores >= BUSY_CORES]
    return OtherLoad(num_runs=len(busy), of_runs=len(runs), most_cores=max(busy)) if busy else None


def _runs_by_scenario(
    runs: Iterable[RunRecord], order: Iterable[str]
) -> dict[str, tuple[RunRecord, ...]]:
    found: dict[str, list[RunRecord]] = {name: [] for name in order}
    for run in sorted(runs, key=lambda run: run.triggered_at):
        found.setdefault(run.scenario, []).append(run)
    return {name: tuple(of_scenario) for name, of_scenario in found.items() if of_scenario}


def _summary(
    name: str, runs: Sequence[RunRecord], baseline: Sequence[RunRecord]
) -> ScenarioSummary:
    ttfs = [run.ttfs_s for run in runs]
    middle = _middle_runs(runs)
    paths = [critical_path(r.spans, r.triggered_at, r.triggered_at + r.ttfs_s) for r in middle]
    critical = [seconds_by_phase(path) for path in paths]
    bounds_s = {
        phase: statistics.median([run.bounds_s[phase] for run in runs if phase in run.bounds_s])
        for phase in in_order(phase for run in runs for phase in run.bounds_s)
    }
    against = () if name == BASELINE else baseline
    phases = in_order(phase for known in (*(r.phases for r in runs), *critical) for phase in known)
    return ScenarioSummary(
        name=name,
        flow_run_ids=tuple(run.flow_run_id for run in runs),
        ttfs=Spread.of(ttfs),
        phases=tuple(
            PhaseSummary(
                phase=phase,
                seconds=Spread.of(_seconds(runs, phase)),
                critical_s=math.fsum(c.get(phase, 0.0) for c in critical) / len(critical),
                to_baseline=_ratio(_seconds(against, phase), _seconds(runs, phase)),
                bound=middle[0].bounds.get(phase, ""),
                bound_s=bounds_s.get(phase),
            )
            for phase in phases
        ),
        to_baseline=_ratio([run.ttfs_s for run in against], ttfs),
        middle=middle[0].flow_run_id,
        path=paths[0],
        next=next_to_improve(paths[0], bounds_s),
        next_measured=next_to_improve(paths[0], bounds_s, measured_only=True),
    )


def _middle_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The run of median TTFS, or the two around it, whose mean is the median."""
    ranked = sorted(runs, key=lambda run: run.ttfs_s)
    return ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]


def _seconds(runs: Sequence[RunRecord], phase: str) -> list[float]:
    return [run.phases.get(phase, 0.0) for run in runs]


def _ratio(above: Sequence[float], below: Sequence[float]) -> Ratio | None:
    """The ratio of the medians; None where a side has no runs, or one of no seconds."""
    if not above or not below or min(*above, *below) <= 0:
        return None
    return bootstrap_ratio(above, below)


def _share(name: str, base: str, off: Sequence[RunRecord], on: Sequence[RunRecord]) -> Share:
    without, with_it = [run.ttfs_s for run in off], [run.ttfs_s for run in on]
    seconds = bootstrap_difference(without, with_it)
    return Share(
        scenario=name,
        base=base,
        seconds=seconds,
        percent=100 * seconds.value / statistics.median(with_it),
    )


def diff(before: BenchmarkRecord, after: BenchmarkRecord) -> Changes:
    """Per scenario the TTFS and each phase, before and after: difference = after − before."""
    old, new = _runs_by_scenario(before.runs, ()), _runs_by_scenario(after.runs, ())
    rows = []
    for name in dict.fromkeys((*old, *new)):
        was, now = old.get(name, ()), new.get(name, ())
        rows.append(_change(name, None, [r.ttfs_s for r in was], [r.ttfs_s for r in now]))
        if not (was and now):
            continue
        for phase in in_order(phase for run in (*was, *now) for phase in run.phases):
            rows.append(_change(name, phase, _seconds(was, phase), _seconds(now, phase)))
    return Changes(
        before=before.model_copy(update={"runs": ()}),
        after=after.model_copy(update={"runs": ()}),
        rows=tuple(rows),
        reasons=_reasons(before, after),
    )


def _change(name: str, phase: str | None, was: Sequence[float], now: Sequence[float]) -> Change:
    return Change(
        scenario=name,
        phase=phase,
        before=Spread.of(was) if was else None,
        after=Spread.of(now) if now else None,
        seconds=bootstrap_difference(now, was) if was and now else None,
    )


def _reasons(before: BenchmarkRecord, after: BenchmarkRecord) -> tuple[str, ...]:
    reasons = []
    if before.machine_id != after.machine_id:
        reasons.append("they ran on different machines")
    names = sorted({*before.settings, *after.settings})
    for name in names:
        was, now = before.settings.get(name), after.settings.get(name)
        if was != now:
            reasons.append(f"{name} was {was}, then {now}")
    return tuple(reasons)
