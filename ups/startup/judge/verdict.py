"""Did a scenario's startup get slower than it was on the same machine, and which phase did it?

The new benchmark's median TTFS is held against three medians of the benchmarks before: of all in
the window, which steps are measured from; of its newest, which shows a fall back soon after an
improvement; and of its oldest, which a drift too slow for the other two adds up against. It is
worse if it is worse than one of them. So a slowdown that stays is reported until the benchmarks
from before it have left the window; a smaller window forgets sooner.

Each phase is judged likewise. One beyond its limit makes its scenario worse where TTFS went along
with it, be that within TTFS's own limit: 0.3 s more of one phase drown in the scatter of them all.

The idle seconds until the end of the first epoch are judged likewise, in a verdict of their own: a
start may take its first step as early as ever, and then wait longer for its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from ups.config import Model
from ups.runs.critical_path import in_order
from ups.startup.judge.limits import Reference, Shift, Thresholds, measure_shift
from ups.startup.measure.records import BenchmarkRecord, RunRecord

Kind = Literal["improved", "unchanged", "worse", "no verdict yet"]
Figure = Literal["TTFS", "idle"]

FIGURES: tuple[Figure, ...] = ("TTFS", "idle")
WENT_ALONG = 0.25  # of what a phase got longer by: less, and others make up for it
ALMOST = 0.75  # of what moved most
WAITS = "waits after the first step"  # the part of the idle seconds that is no phase
KINDS: dict[int, Kind] = {-1: "improved", 0: "unchanged", 1: "worse"}


class MovedPhase(Model):
    """A phase whose median crossed `limit_s`, faster or slower."""

    phase: str
    before_s: float
    after_s: float
    limit_s: float


class Verdict(Model):
    """About one figure of a scenario. Times are medians, in seconds.

    Attributes:
        figure: what is judged.
        phase: that moved most in the direction of the change, or almost so and before the others,
            which waited for it; None where it is unchanged, or where no phase moved that way (they
            overlap less or more than they did).
        limit_s: the time beyond which it would count as worse, or counts as changed.
        reference: the part of the window that `before_s` is of.
        num_before, num_benchmarks: the runs of that part, and the benchmarks that they are of.
        least_runs: before, below which there is no verdict. Verdicts of an earlier version have
            neither this nor `num_benchmarks`.
        phase_limit_s: of `phase`, where that is what was crossed and not `limit_s`.
        moved_phases: of TTFS, beyond limits of their own, also where others make up for them.
    """

    scenario: str
    figure: Figure = "TTFS"
    kind: Kind
    phase: str | None = None
    before_s: float | None = None
    after_s: float | None = None
    phase_before_s: float | None = None
    phase_after_s: float | None = None
    phase_limit_s: float | None = None
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
            return f"{self.scenario}: {self.kind}: {self.figure} {self.after_s:.2f} s ({few})"
        cause = note = ""
        if self.kind == "unchanged":
            moved = [f"{p.phase} {_change(p.before_s, p.after_s)}" for p in self.moved_phases]
            note = f"; yet {', '.join(moved)}" if moved else ""
        elif self.phase is None:
            cause = "no single phase; "
        else:
            cause = f"{self.phase} {_change(self.phase_before_s, self.phase_after_s)}"
            beyond = self.phase_limit_s
            cause += "; " if beyond is None else f" (its limit {beyond:.2f} s); "
        times = f"{self.figure} {_change(self.before_s, self.after_s)}"
        limit = f"(limit {self.limit_s:.2f} s, median of {self._runs_before})"
        return f"{self.scenario}: {self.kind}: {cause}{times} {limit}{note}"

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
    """Judge each of its scenarios by the earlier benchmarks of the same machine and settings.

    Returns:
        TTFS and idle seconds of each, the latter where any of its runs knows them.
    """
    before = [
        earlier.runs
        for earlier in history
        if earlier.started_at < benchmark.started_at and earlier.is_comparable(benchmark)
    ]
    return tuple(
        judge(name, benchmark.runs, before, thresholds, figure)
        for name in benchmark.scenarios
        for figure in FIGURES
        if _with_figure(name, figure, benchmark.runs)
    )


def judge(
    scenario: str,
    now: Sequence[RunRecord],
    before: Iterable[Sequence[RunRecord]],
    thresholds: Thresholds,
    figure: Figure = "TTFS",
) -> Verdict:
    """Hold the runs of a scenario against those of earlier benchmarks; no order matters.

    Args:
        now: the benchmark's runs; those of other scenarios, and without the figure, are left out.
        before: runs of each benchmark of the same machine and settings, likewise.
    """
    if figure == "idle":
        thresholds = thresholds.of_idle
    now = _with_figure(scenario, figure, now)
    window = _benchmarks(scenario, figure, before)[-thresholds.window :]
    num_before = sum(len(runs) for runs in window)
    now_s = _seconds(now, figure)
    if not now or num_before < thresholds.least_runs:
        runs_s = [s for runs in window for s in _seconds(runs, figure)]
        return Verdict(
            scenario=scenario,
            figure=figure,
            kind="no verdict yet",
            before_s=median(runs_s) if runs_s else None,
            after_s=median(now_s) if now else None,
            num_before=num_before,
            num_benchmarks=len(window),
            num_now=len(now),
            least_runs=thresholds.least_runs,
        )

    shift = measure_shift([_seconds(runs, figure) for runs in window], now_s, thresholds)
    reference = [run for runs in window[shift.part] for run in runs]
    moved = _part_that_moved(reference, now, figure, shift.sign) if shift.sign else None
    phase, phase_before_s, phase_after_s = moved or (None, None, None)
    kind, phase_limit_s = KINDS[shift.sign], None
    are_judged = figure == "TTFS" and len(window) >= thresholds.phase_benchmarks
    moved_phases = _moved_phases(window, now, thresholds.of_phase) if are_judged else ()
    if kind == "unchanged" and (slower := _slower_phase(moved_phases, shift)):
        kind, phase, phase_limit_s = "worse", slower.phase, slower.limit_s
        phase_before_s, phase_after_s = slower.before_s, slower.after_s
    return Verdict(
        scenario=scenario,
        figure=figure,
        kind=kind,
        phase=phase,
        before_s=shift.before_s,
        after_s=shift.after_s,
        phase_before_s=phase_before_s,
        phase_after_s=phase_after_s,
        phase_limit_s=phase_limit_s,
        limit_s=shift.limit_s,
        reference=shift.reference,
        num_before=len(reference),
        num_benchmarks=len(window[shift.part]),
        num_now=len(now),
        least_runs=thresholds.least_runs,
        moved_phases=moved_phases,
    )


def _seconds(runs: Iterable[RunRecord], figure: Figure) -> list[float]:
    """Of the runs that know the figure: those of earlier versions know no idle seconds."""
    seconds = (run.ttfs_s if figure == "TTFS" else run.idle_s for run in runs)
    return [s for s in seconds if s is not None]


def _with_figure(scenario: str, figure: Figure, runs: Iterable[RunRecord]) -> list[RunRecord]:
    return [run for run in runs if run.scenario == scenario and _seconds([run], figure)]


def _benchmarks(
    scenario: str, figure: Figure, before: Iterable[Sequence[RunRecord]]
) -> list[list[RunRecord]]:
    """The runs of those that ran the scenario and know the figure, oldest benchmark first."""

    def began(runs: Sequence[RunRecord]) -> tuple[float, str]:
        return min((run.triggered_at, run.flow_run_id) for run in runs)

    found = [_with_figure(scenario, figure, runs) for runs in before]
    return sorted((runs for runs in found if runs), key=began)


def _parts_s(runs: Sequence[RunRecord], figure: Figure) -> dict[str, float]:
    """phase → its median; of idle seconds also the waits that no phase holds."""
    parts_s = {phase: median([run.seconds(phase) for run in runs]) for phase in _phases(runs)}
    if figure == "idle":
        waits_s = [(run.waited_s or 0.0) - run.seconds("first rows") for run in runs]
        parts_s[WAITS] = max(0.0, median(waits_s))
    return parts_s


def _part_that_moved(
    before: Sequence[RunRecord], now: Sequence[RunRecord], figure: Figure, sign: int
) -> tuple[str, float, float] | None:
    """The part that moved most in this direction, and its medians; None where none did.

    Where a load waits for a download, both move: the first in the order of a startup is meant.
    """
    before_s, now_s = _parts_s(before, figure), _parts_s(now, figure)
    names = in_order(sorted({*before_s, *now_s}))
    parts = [(name, before_s.get(name, 0.0), now_s.get(name, 0.0)) for name in names]
    most = max((sign * (part[2] - part[1]) for part in parts), default=0.0)
    if most <= 0:
        return None
    return next(part for part in parts if sign * (part[2] - part[1]) >= ALMOST * most)


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


def _slower_phase(moved: Iterable[MovedPhase], shift: Shift) -> MovedPhase | None:
    """The one that got longer by most, with TTFS going along; None where none did."""
    least_s = (shift.after_s - shift.before_s) / WENT_ALONG
    slower = [p for p in moved if 0 < p.after_s - p.before_s <= least_s]
    return max(slower, key=lambda p: p.after_s - p.before_s, default=None)


def _phases(runs: Iterable[RunRecord]) -> list[str]:
    return sorted({phase for run in runs for phase in run.phases})


def _change(before_s: float | None, after_s: float | None) -> str:
    assert before_s is not None
    assert after_s is not None
    return f"{before_s:.2f} -> {after_s:.2f} s"


def _count(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}"
