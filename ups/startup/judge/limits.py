"""How far a time may be from what it was before it counts as changed.

A benchmark counts by the median of its runs. The variance of such medians is taken from the steps
between benchmarks that follow each other (von Neumann et al. 1941), so neither a drift nor a step
in the history passes for noise; steps far beyond the others are cut. As a few steps may look calm
by chance, `between`, widened by how much the runs of one benchmark scatter, is mixed in as if 4
steps had shown it (a moderated variance: Smyth 2004). The margin is `sigmas` times the scatter of
the difference: the limit of a prediction.

A phase has the same kind of limit with settings of its own: it is shorter than the whole and
scatters less, so it shows what the whole hides. With some 40 of them in a benchmark, they are held
to more sigmas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, sqrt
from statistics import fmean, median
from typing import Literal

from pydantic import Field

from ups.config import Model
from ups.startup.judge.stats import SIGMA_PER_MAD, mad

Reference = Literal["all", "newest", "oldest"]
Times = Sequence[Sequence[float]]  # of benchmarks, oldest first: the seconds of their runs

ASSUMED_STEPS = 4  # that `between` counts as
CUT_SIGMAS = 2.5  # of the steps
END = 3  # benchmarks, at either end of the history
SIGMA_PER_MEDIAN = 1.2533  # of normal noise: of a median of n values, times sqrt(n)


class Thresholds(Model):
    """From when on a change counts: beyond `relative`, `sigmas` and `least_s`, or `certain`."""

    window: int = Field(30, ge=1, description="benchmarks looked back at")
    least_runs: int = Field(5, ge=1, description="runs before, below which there is no verdict")
    relative: float = Field(0.15, ge=0, description="share of what it was")
    sigmas: float = Field(3.0, ge=0, description="multiple of the scatter of the benchmarks before")
    idle_sigmas: float = Field(
        4.0, ge=0, description="the same for idle seconds, so that both raise no more false alarms"
    )
    between: float = Field(
        0.15,
        ge=0,
        description="scatter between benchmarks, as a share of the time, assumed while few show it",
    )
    certain: float = Field(
        2.0, gt=0, description="share of what it was that counts, however large the scatter"
    )
    least_s: float = Field(0.25, ge=0, description="seconds that nobody cares about")
    phase_benchmarks: int = Field(5, ge=1, description="before, below which no phase is judged")
    phase_relative: float = Field(0.1, ge=0, description="`relative` of a phase")
    phase_sigmas: float = Field(4.0, ge=0, description="`sigmas` of a phase")
    phase_between: float = Field(0.05, ge=0, description="`between` of a phase")
    phase_least_s: float = Field(0.15, ge=0, description="`least_s` of a phase")

    @property
    def of_idle(self) -> Thresholds:
        """Those by which idle seconds are judged."""
        return self.model_copy(update={"sigmas": self.idle_sigmas})

    @property
    def of_phase(self) -> Thresholds:
        """Those by which a phase is judged; none is certain, as a short one may double by noise."""
        own = {name: getattr(self, f"phase_{name}") for name in ("relative", "sigmas", "between")}
        return self.model_copy(update={**own, "least_s": self.phase_least_s, "certain": inf})


@dataclass(frozen=True, slots=True)
class Shift:
    """From the median of a part of the benchmarks before to that of the new one; seconds."""

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


def measure_shift(before_s: Times, now_s: Sequence[float], thresholds: Thresholds) -> Shift:
    """Against the first part that makes it slower, else faster, else that of the lowest limit."""
    medians = [median(times) for times in before_s]
    num = len(medians)
    parts: dict[Reference, slice] = {"all": slice(0, num)}
    if num >= 2 * END:
        parts |= {"newest": slice(num - END, num), "oldest": slice(0, END)}
    sigma_s = _sigma(before_s, medians, len(now_s), thresholds)
    shifts = []
    for reference, part in parts.items():
        old_s, num_old = median(medians[part]), part.stop - part.start
        of_old = 1.0 if num_old == 1 else SIGMA_PER_MEDIAN / sqrt(num_old)
        noise_s = sigma_s * hypot(1, of_old)
        margin_s = max(thresholds.relative * old_s, thresholds.sigmas * noise_s)
        margin_s = max(min(margin_s, thresholds.certain * old_s), thresholds.least_s)
        shifts.append(Shift(reference, part, old_s, median(now_s), margin_s))
    for sign in (1, -1):
        for shift in shifts:
            if shift.sign == sign:
                return shift
    return min(shifts, key=lambda shift: shift.limit_s)


def _sigma(
    before_s: Times, medians: Sequence[float], num_now: int, thresholds: Thresholds
) -> float:
    """Scatter of the median of `num_now` runs from benchmark to benchmark."""
    apart_s = [s - of for times, of in zip(before_s, medians, strict=True) for s in times]
    within_s = SIGMA_PER_MEDIAN * mad(apart_s) / sqrt(num_now)
    assumed_s = hypot(thresholds.between * median(medians), within_s)
    steps_s = [abs(new - old) for old, new in pairwise(medians)]
    most_s = CUT_SIGMAS * SIGMA_PER_MAD * median(steps_s) if steps_s else 0.0
    shown = fmean([min(step_s, most_s) ** 2 for step_s in steps_s]) / 2 if steps_s else 0.0
    squares = ASSUMED_STEPS * assumed_s**2 + len(steps_s) * shown
    return sqrt(squares / (ASSUMED_STEPS + len(steps_s)))
