"""Robust statistics of a few timings: median, MAD, and bootstrap intervals of what compares two.

All of them raise `ShapeError` where a side has no values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ups.errors import ShapeError

Values = Sequence[float]
Array = NDArray[np.float64]

SIGMA_PER_MAD = 1.4826  # of normal noise
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate in its unit, and its confidence interval; `low`, `high` are NaN if not known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio(Interval):
    """Of two medians, dimensionless."""

    def __str__(self) -> str:
        """`3.12× [2.80–3.40]`, without the interval where it is not known."""
        if math.isnan(self.low):
            return f"{factor(self.value)}×"
        return f"{factor(self.value)}× [{factor(self.low)}–{factor(self.high)}]"


def factor(value: float) -> str:
    """A dimensionless number to three digits or all that are before the point: `1,240`."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def mad(values: Values) -> float:
    """Median absolute deviation from the median, scaled to the sigma of normal noise."""
    sample = _sample(values)
    return SIGMA_PER_MAD * float(np.median(np.abs(sample - np.median(sample))))


def bootstrap_ratio(
    a: Values, b: Values, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Ratio:
    """median(a) / median(b) with a percentile bootstrap interval; infinite where b's median is 0.

    The interval cannot be wider than what was seen: of two or three runs a side it holds the truth
    less often than `level` says (67 and 90 %, not 95), of one run a side it is not known (NaN).
    """
    return Ratio(*_bootstrap(_divide, a, b, resamples, level, seed))


def bootstrap_difference(
    a: Values, b: Values, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """median(a) - median(b), with an interval made as in `bootstrap_ratio`."""
    return Interval(*_bootstrap(np.subtract, a, b, resamples, level, seed))


def _bootstrap(
    combine: Callable[[Array, Array], Array],
    a: Values,
    b: Values,
    resamples: int,
    level: float,
    seed: int,
) -> tuple[float, float, float]:
    """Combine both medians; then the ends of the middle `level` of what resampled medians give.

    The ends are rounded outwards, to estimates there are.
    """
    rng, samples = np.random.default_rng(seed), [_sample(a), _sample(b)]
    value = float(combine(*(np.median(sample, keepdims=True) for sample in samples))[0])
    if min(len(a), len(b)) == 1:
        return value, math.nan, math.nan
    medians_R = []
    for sample in samples:
        index_RN = rng.integers(sample.size, size=(resamples, sample.size))
        medians_R.append(np.median(sample[index_RN], axis=1))
    estimates_R = np.sort(combine(*medians_R))
    tail = int((1 - level) / 2 * (resamples - 1))
    return value, float(estimates_R[tail]), float(estimates_R[-1 - tail])


def _sample(values: Values) -> Array:
    """Sorted, so that no result depends on the order of the runs."""
    sample = np.sort(np.asarray(values, dtype=np.float64))
    if sample.size == 0:
        raise ShapeError("no runs to take a median of: at least one is needed")
    return sample


def _divide(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.full_like(a, np.inf), where=b != 0)
