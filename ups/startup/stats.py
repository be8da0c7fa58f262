"""Robust statistics of a few timings: median, MAD, and bootstrap intervals of what compares two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ups.errors import ShapeError

SIGMA_PER_MAD = 1.4826  # of normal noise
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; `low` and `high` are NaN where not known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio(Interval):
    """Of two medians, dimensionless."""


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """Of two medians, in the unit of the samples."""


def median(values: Sequence[float]) -> float:
    """
    Raises:
        ShapeError: there are no values.
    """
    return float(np.median(_sample(values)))


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation from the median, scaled to the sigma of normal noise.

    Raises:
        ShapeError: there are no values.
    """
    sample = _sample(values)
    return SIGMA_PER_MAD * float(np.median(np.abs(sample - np.median(sample))))


def bootstrap_ratio(
    a: Sequence[float],
    b: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Ratio:
    """median(a) / median(b) with a percentile bootstrap interval; infinite where b's median is 0.

    The interval cannot be wider than what was seen: of two or three runs a side it holds the truth
    less often than `level` says (67 and 90 %, not 95), of one run a side it is not known (NaN).

    Raises:
        ShapeError: `a` or `b` has no values.
    """
    a_R, b_R = _medians(a, b, resamples, seed)
    low, high = _percentiles(_divide(a_R, b_R), level, known=min(len(a), len(b)) > 1)
    value = _divide(np.array([median(a)]), np.array([median(b)]))
    return Ratio(float(value[0]), low, high)


def bootstrap_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """median(a) - median(b), with an interval made as in `bootstrap_ratio`.

    Raises:
        ShapeError: `a` or `b` has no values.
    """
    a_R, b_R = _medians(a, b, resamples, seed)
    low, high = _percentiles(a_R - b_R, level, known=min(len(a), len(b)) > 1)
    return Difference(median(a) - median(b), low, high)


def _sample(values: Sequence[float]) -> NDArray[np.float64]:
    """Sorted, so that no result depends on the order of the runs."""
    sample = np.sort(np.asarray(values, dtype=np.float64))
    if sample.size == 0:
        raise ShapeError("no runs to take a median of: at least one is needed")
    return sample


def _medians(
    a: Sequence[float], b: Sequence[float], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R,) each: the medians of R samples drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = []
    for sample in (_sample(a), _sample(b)):
        index_RN = rng.integers(sample.size, size=(resamples, sample.size))
        drawn.append(np.asarray(np.median(sample[index_RN], axis=1)))
    return drawn[0], drawn[1]


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.full_like(a, np.inf), where=b != 0)


def _percentiles(
    estimates_R: NDArray[np.float64], level: float, *, known: bool
) -> tuple[float, float]:
    """Both ends of the middle `level` of the estimates, rounded outwards to estimates there are."""
    if not known:
        return float("nan"), float("nan")
    ordered, tail = np.sort(estimates_R), (1 - level) / 2
    last = len(ordered) - 1
    return float(ordered[int(tail * last)]), float(ordered[last - int(tail * last)])
