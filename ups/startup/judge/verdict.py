"""Did a scenario's startup get slower than it was on the same machine, and which phase did it?

The new benchmark's median TTFS is held against three medians of the benchmarks before: of all in
the window, which steps are measured from; of its newest, which shows a fall back soon after an
improvement; and of its oldest, which a drift too slow for the other two adds up against. It is
worse if it is worse than one of them. So a slowdown that stays is reported until the benchmarks
from before it have left the window; a smaller window forgets sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from ups.config import Model
from ups.startup.judge.limits import Reference, Thresholds, measure_shift
from ups.startup.measure.records import BenchmarkRecord, RunRecord

Kind = Literal["improved", "unchanged", "worse", "no verdict yet"]

KINDS: dict[int, Kind] = {-1: "improved", 0: "unchanged", 1: "worse"}


class MovedPhase(Model):
    """A phase whose median crossed `limit_s`, faster or slower."""

    phase: str
    before_s: float
    after_s: float
    limit_s: float


class Verdict(Model):
    """About one scenario. Times are medians, in seconds.

    Attributes:
        phase: that moved most in the direction of the change; None where TTFS is unchanged, or
            where no phase moved that way (they overlap less or more than they did).
        limit_s: the TTFS beyond which it would count as worse, or counts as changed.
        reference: the part of the window that `before_s` is of.
        num_before, num_benchmarks: the runs of that part, and the benchmarks that they are of.
        least_runs: before, below which there is no verdict. Verdicts of an earlier version have
            neither this nor `num_benchmarks`.
        moved_phases: beyond limits of their own, also where others make up for them.
    """

    scenario: str
    kind: Kind
    phase: str | None = None
    before_s: float | None = None
    after_s: float | None = None
    phase_before_s: float | None = None
    phase_after_s: float | None = None
    limit_s: float | None = None
    reference: Reference = "all"
    num_before: int
    num_benchmarks: int | None = None
    num_now: int
    least_runs: int | None = None
    moved_phases: tuple[MovedPhase, ...] = ()

    @property
    def message(self) -> str:
        """One line: scenario, kind, phase, before, after, limit."""
        if self.limit_s is None:
            if self.after_s is None:
                return f"{self.scenario}: {self.kind}: no run to judge"
            few = f"{self._runs_before}, fewer than {self.least_runs or 'least_runs'}"
            return f"{self.scenario}: {self.kind}: TTFS {self.after_s:.2f} s ({few})"
        cause = note = ""
        if self.kind == "unchanged":
            moved = [f"{p.phase} {_change(p.before_s, p.after_s)}" for p in self.moved_phases]
            note = f"; yet {', '.join(moved)}" if moved else ""
        elif self.phase is None:
            cause = "no single phase; "
        else:
            cause = f"{self.phase} {_change(self.phase_before_s, self.phase_after_s)}; "
        return (
            f"{self.scenario}: {self.kind}: {cause}TTFS {_change(self.before_s, self.after_s)} "
            f"(limit {self.limit_s:.2f} s, median of {self._runs_before}){note}"
        )

    @property
    def _runs_before(self) -> str:
        if self.num_benchmarks is None:
            return f"{_count(self.num_before, 'run')} before"
        of = f"of {_count(self.num_benchmarks, 'benchmark')}"
        if self.reference == "oldest":
            return f"{_count(self.num_before, 'run')} {of}, the oldest of the window"
        newest = "the newest " if self.reference == "newest" else ""
        return f"{newest}{_count(self.num_before, 'run')} {of} before"


def judge_benchmark(
    benchmark: BenchmarkRecord, history: Iterable[BenchmarkRecord], thresholds: Thresholds
) -> tuple[Verdict, ...]:
    """Judge each of its scenarios by the earlier benchmarks of the same machine and settings."""
    before = [
        earlier.runs
        for earlier in history
        if earlier.started_at < benchmark.started_at and earlier.is_comparable(benchmark)
    ]
    return tuple(judge(name, benchmark.runs, before, thresholds) for name in benchmark.scenarios)


def judge(
    scenario: str,
    now: Sequence[RunRecord],
    before: Iterable[Sequence[RunRecord]],
    thresholds: Thresholds,
) -> Verdict:
    """Hold the runs of a scenario against those of earlier benchmarks; no order matters.

    Args:
        now: the benchmark's runs; those of other scenarios are left out.
        before: runs of each benchmark of the same machine and settings, likewise.
    """
    now = [run for run in now if run.scenario == scenario]
    window = _benchmarks(scenario, before)[-thresholds.window :]
    num_before = sum(len(runs) for runs in window)
    now_s = [run.ttfs_s for run in now]
    if not now or num_before < thresholds.least_runs:
        runs_s = [run.ttfs_s for runs in window for run in runs]
        return Verdict(
            scenario=scenario,
            kind="no verdict yet",
            before_s=median(runs_s) if runs_s else None,
            after_s=median(now_s) if now else None,
            num_before=num_before,
            num_benchmarks=len(window),
            num_now=len(now),
            least_runs=thresholds.least_runs,
        )

    shift = measure_shift([[r.ttfs_s for r in runs] for runs in window], now_s, thresholds)
    reference = [run for runs in window[shift.part] for run in runs]
    phase = _phase_that_moved(reference, now, shift.sign)
    return Verdict(
        scenario=scenario,
        kind=KINDS[shift.sign],
        phase=phase,
        before_s=shift.before_s,
        after_s=shift.after_s,
        phase_before_s=None if phase is None else _median_s(reference, phase),
        phase_after_s=None if phase is None else _median_s(now, phase),
        limit_s=shift.limit_s,
        reference=shift.reference,
        num_before=len(reference),
        num_benchmarks=len(window[shift.part]),
        num_now=len(now),
        least_runs=thresholds.least_runs,
        moved_phases=_moved_phases(window, now, thresholds),
    )


def _benchmarks(scenario: str, before: Iterable[Sequence[RunRecord]]) -> list[list[RunRecord]]:
    """The runs of those that ran the scenario, oldest benchmark first."""

    def began(runs: Sequence[RunRecord]) -> tuple[float, str]:
        return min((run.triggered_at, run.flow_run_id) for run in runs)

    found = [[run for run in runs if run.scenario == scenario] for runs in before]
    return sorted((runs for runs in found if runs), key=began)


def _phase_that_moved(
    before: Sequence[RunRecord], now: Sequence[RunRecord], sign: int
) -> str | None:
    moved_s = {
        phase: sign * (_median_s(now, phase) - _median_s(before, phase))
        for phase in _phases([*before, *now])
    }
    most = max(moved_s, key=lambda phase: moved_s[phase], default=None)
    return most if most is not None and moved_s[most] > 0 else None


def _moved_phases(
    before: Sequence[Sequence[RunRecord]], now: Sequence[RunRecord], thresholds: Thresholds
) -> tuple[MovedPhase, ...]:
    moved = []
    for phase in _phases([*(run for runs in before for run in runs), *now]):
        *before_s, now_s = ([run.seconds(phase) for run in runs] for runs in (*before, now))
        shift = measure_shift(before_s, now_s, thresholds)
        if shift.sign:
            times = {"before_s": shift.before_s, "after_s": shift.after_s, "limit_s": shift.limit_s}
            moved.append(MovedPhase(phase=phase, **times))
    return tuple(moved)


def _phases(runs: Iterable[RunRecord]) -> list[str]:
    return sorted({phase for run in runs for phase in run.phases})


def _median_s(runs: Sequence[RunRecord], phase: str) -> float:
    return median([run.seconds(phase) for run in runs])


def _change(before_s: float | None, after_s: float | None) -> str:
    assert before_s is not None
    assert after_s is not None
    return f"{before_s:.2f} -> {after_s:.2f} s"


def _count(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}"
