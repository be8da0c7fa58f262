"""Did a scenario's startup get slower than it was on the same machine, and which phase did it?

The median TTFS of the new runs is held against three medians of the window of runs before: of all
of it, which steps are measured from; of its newest runs, which shows a fall back soon after an
improvement; and of its oldest, which a drift too slow for the other two adds up against. It is
worse if it is worse than one of them. So a slowdown that stays is reported until the runs from
before it have left the window; a smaller window forgets sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, Self

from pydantic import Field, model_validator

from ups.config import Model
from ups.startup.records import RunRecord
from ups.startup.stats import mad, median

Kind = Literal["improved", "unchanged", "worse", "no verdict yet"]
Reference = Literal["all", "newest", "oldest"]

KINDS: dict[int, Kind] = {-1: "improved", 0: "unchanged", 1: "worse"}


class Thresholds(Model):
    """From when on a change counts: beyond `relative`, `sigmas` and `least_s`, or `certain`."""

    window: int = Field(50, ge=1, description="runs looked back at")
    least_runs: int = Field(5, ge=1, description="runs before, below which there is no verdict")
    relative: float = Field(0.15, ge=0, description="share of what it was")
    sigmas: float = Field(4.0, ge=0, description="multiple of the noise of the runs before")
    certain: float = Field(
        2.0, gt=0, description="share of what it was that counts, however noisy the runs before"
    )
    least_s: float = Field(0.25, ge=0, description="seconds that nobody cares about")

    @model_validator(mode="after")
    def _window_holds_enough(self) -> Self:
        if self.window < self.least_runs:
            raise ValueError(
                f"window is {self.window} and least_runs {self.least_runs}: there would never be a "
                "verdict; raise window or lower least_runs"
            )
        return self


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
        limit_s: the TTFS beyond which it would count, or counts, as changed.
        reference: the runs that `before_s` is of: all of the window, its newest or its oldest.
        num_before: how many those are.
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
    num_now: int
    moved_phases: tuple[MovedPhase, ...] = ()

    @property
    def message(self) -> str:
        """One line: scenario, kind, phase, before, after, limit."""
        if self.limit_s is None:
            if self.after_s is None:
                return f"{self.scenario}: {self.kind}: no run to judge"
            few = f"{self._runs_before}, fewer than least_runs"
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
        if self.reference == "all":
            return f"{_runs(self.num_before)} before"
        where = "before" if self.reference == "newest" else "of the window"
        return f"the {self.num_before} {self.reference} runs {where}"

    def __str__(self) -> str:
        return self.message


def judge(
    scenario: str, now: Sequence[RunRecord], before: Sequence[RunRecord], thresholds: Thresholds
) -> Verdict:
    """Hold the runs of a scenario against earlier ones; neither order matters.

    Args:
        now: the benchmark's runs; those of other scenarios are left out.
        before: runs of the same machine and settings, likewise.
    """
    now = [run for run in now if run.scenario == scenario]
    before = _by_time(run for run in before if run.scenario == scenario)[-thresholds.window :]
    before_s, now_s = [run.ttfs_s for run in before], [run.ttfs_s for run in now]
    if not now or len(before) < thresholds.least_runs:
        return Verdict(
            scenario=scenario,
            kind="no verdict yet",
            before_s=median(before_s) if before else None,
            after_s=median(now_s) if now else None,
            num_before=len(before),
            num_now=len(now),
        )

    shift = _shift(before_s, now_s, thresholds)
    reference = before[shift.part]
    phase = _phase_that_moved(reference, now, shift.sign)
    return Verdict(
        scenario=scenario,
        kind=KINDS[shift.sign],
        phase=phase,
        before_s=shift.before_s,
        after_s=shift.after_s,
        phase_before_s=None if phase is None else median(_seconds(reference, phase)),
        phase_after_s=None if phase is None else median(_seconds(now, phase)),
        limit_s=shift.limit_s,
        reference=shift.reference,
        num_before=len(reference),
        num_now=len(now),
        moved_phases=_moved_phases(before, now, thresholds),
    )


@dataclass(frozen=True, slots=True)
class _Shift:
    """From the median of a part of the runs before to that of the new ones; seconds."""

    reference: Reference
    part: slice
    before_s: float
    after_s: float
    margin_s: float

    @property
    def sign(self) -> int:
        """1 slower, -1 faster, 0 within the margin."""
        change_s = self.after_s - self.before_s
        return 0 if abs(change_s) <= self.margin_s else 1 if change_s > 0 else -1

    @property
    def limit_s(self) -> float:
        return self.before_s + (-1 if self.sign < 0 else 1) * self.margin_s


def _shift(before_s: Sequence[float], now_s: Sequence[float], thresholds: Thresholds) -> _Shift:
    """Against the first reference that makes it slower, else faster, else against all.

    Args:
        before_s: oldest first.
    """
    num, least, num_now = len(before_s), thresholds.least_runs, len(now_s)
    parts: dict[Reference, slice] = {"all": slice(0, num)}
    if num >= 2 * least:
        parts |= {"newest": slice(num - least, num), "oldest": slice(0, least)}

    # The k runs of one benchmark share what that night was like (neighbours, disk, clock rate), and
    # nights differ by more than runs of a night do. So their median is taken to scatter like one
    # run, not like 1.25 sigma / sqrt(k), and m runs before to hold m / k nights, not m. The last
    # factor stands for a sigma that itself is known from n / k nights only.
    sigma_s = _sigma(before_s, num_now, thresholds) * (1 + 1 / _nights(num, num_now))
    shifts = []
    for reference, part in parts.items():
        old_s = median(before_s[part])
        noise_s = sigma_s * sqrt(1 + 1.2533**2 / _nights(len(before_s[part]), num_now))
        margin_s = max(thresholds.relative * old_s, thresholds.sigmas * noise_s)
        margin_s = max(min(margin_s, thresholds.certain * old_s), thresholds.least_s)
        shifts.append(_Shift(reference, part, old_s, median(now_s), margin_s))
    for sign in (1, -1):
        for shift in shifts:
            if shift.sign == sign:
                return shift
    return shifts[0]


def _nights(num_runs: int, num_now: int) -> float:
    """That so many runs hold, where benchmarks have as many runs each as the new one."""
    return max(1.0, num_runs / num_now)


def _sigma(before_s: Sequence[float], num_now: int, thresholds: Thresholds) -> float:
    """Noise of one run, from night to night.

    A long history is differenced from each night to the next, so that neither a drift nor a step
    in it passes for noise; a short one has too few nights for that.
    """
    num = len(before_s)
    if num < 4 * thresholds.least_runs or num <= 2 * num_now:
        return mad(before_s)
    nightly = [new - old for old, new in zip(before_s, before_s[num_now:], strict=False)]
    return mad(nightly) / sqrt(2)


def _phase_that_moved(
    before: Sequence[RunRecord], now: Sequence[RunRecord], sign: int
) -> str | None:
    moved_s = {
        phase: sign * (median(_seconds(now, phase)) - median(_seconds(before, phase)))
        for phase in _phases([*before, *now])
    }
    most = max(moved_s, key=lambda phase: moved_s[phase], default=None)
    return most if most is not None and moved_s[most] > 0 else None


def _moved_phases(
    before: Sequence[RunRecord], now: Sequence[RunRecord], thresholds: Thresholds
) -> tuple[MovedPhase, ...]:
    moved = []
    for phase in _phases([*before, *now]):
        shift = _shift(_seconds(before, phase), _seconds(now, phase), thresholds)
        if shift.sign:
            times = {"before_s": shift.before_s, "after_s": shift.after_s, "limit_s": shift.limit_s}
            moved.append(MovedPhase(phase=phase, **times))
    return tuple(moved)


def _phases(runs: Iterable[RunRecord]) -> list[str]:
    return sorted({phase for run in runs for phase in run.phases})


def _seconds(runs: Sequence[RunRecord], phase: str) -> list[float]:
    """Of each run; a phase that a run did without took it no time."""
    return [run.phases.get(phase, 0.0) for run in runs]


def _by_time(runs: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(runs, key=lambda run: (run.triggered_at, run.repeat, run.flow_run_id))


def _change(before_s: float | None, after_s: float | None) -> str:
    assert before_s is not None
    assert after_s is not None
    return f"{before_s:.2f} -> {after_s:.2f} s"


def _runs(num: int) -> str:
    return f"{num} run{'' if num == 1 else 's'}"
