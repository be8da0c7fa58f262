"""Contenders alternated within each repeat, and what becomes of their numbers.

A contender is a function that does its work once and returns a value in the comparison's unit,
or a `Sample` with further values. Each repeat has an order of its own, so that a slow moment of the
machine, and what a contender leaves behind, meet each. Warm-up repeats run first and are thrown
away.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ups.startup.order import in_turn

Role = Literal["ours", "peer", "bound"]
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, and what was noted beside it (e.g. `cpu_s_per_gb`)."""

    value: float
    extras: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """
    Args:
        run: measures once, in the comparison's unit.
        before: prepares a measurement, outside of it (drops caches, removes files).
    """

    name: str
    role: Role
    run: Callable[[], float | Sample]
    before: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Result:
    """What one contender came to; `failed` says why where it has no values."""

    name: str
    role: Role
    values: list[float] = field(default_factory=list)
    extras: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.values) if self.values else None


@dataclass(slots=True)
class Comparison:
    """A row of the table.

    Attributes:
        targets: contender → the least ratio of ours to it that is asked for.
        notes: what a reader must know to read the figures.
    """

    section: str
    phase: str
    unit: str
    better: Better
    results: list[Result]
    targets: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ours(self) -> Result | None:
        return next((r for r in self.results if r.role == "ours"), None)

    def ratio(self, name: str) -> float | None:
        """How many times as good ours is as `name`, by the medians; of a bound, the share of it."""
        other = next((r for r in self.results if r.name == name), None)
        if self.ours is None or other is None or not (self.ours.values and other.values):
            return None
        mine = statistics.median(self.ours.values)
        theirs = statistics.median(other.values)
        above, below = (theirs, mine) if self.better == "lower" else (mine, theirs)
        return above / below if below else None

    def reached(self) -> dict[str, bool | None]:
        """Per target, whether it is reached; None where it could not be measured."""
        found: dict[str, bool | None] = {}
        for name, least in self.targets.items():
            ratio = self.ratio(name)
            found[name] = None if ratio is None else ratio >= least
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "phase": self.phase,
            "unit": self.unit,
            "better": self.better,
            "results": [_result_json(self, result) for result in self.results],
            "targets": self.targets,
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Comparison:
        results = [
            Result(r["name"], r["role"], r["values"], r.get("extras", {}), r.get("failed"))
            for r in record["results"]
        ]
        kept = {k: record[k] for k in ("section", "phase", "unit", "better", "targets", "notes")}
        return cls(results=results, **kept)


def alternate(contenders: Sequence[Contender], repeats: int, warm_ups: int = 1) -> list[Result]:
    """Measure each contender `repeats` times; one that fails is left out from then on."""
    results = {c.name: Result(c.name, c.role) for c in contenders}
    if len(results) != len(contenders):
        raise ValueError(f"contenders share a name: {[c.name for c in contenders]}")
    for repeat in range(-warm_ups, repeats):
        for contender in in_turn(contenders, repeat + 1):
            result = results[contender.name]
            if result.failed is not None:
                continue
            try:
                sample = _measure(contender)
            except Exception as error:  # noqa: BLE001 (its row says so; the others go on)
                result.failed = describe(error)
                result.values, result.extras = [], {}
                continue
            if repeat >= 0:
                result.values.append(sample.value)
                for name, value in sample.extras.items():
                    result.extras.setdefault(name, []).append(value)
    return list(results.values())


def describe(error: BaseException) -> str:
    """One line of an error, for the row of what failed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _measure(contender: Contender) -> Sample:
    if contender.before is not None:
        contender.before()
    found = contender.run()
    return found if isinstance(found, Sample) else Sample(found)


def _result_json(comparison: Comparison, result: Result) -> dict[str, Any]:
    record: dict[str, Any] = {"name": result.name, "role": result.role, "values": result.values}
    if result.spread is not None:
        record |= {"median": result.spread.median, "min": result.spread.low}
        record |= {"max": result.spread.high}
    if result.extras:
        record["extras"] = result.extras
        record["extras_median"] = {k: statistics.median(v) for k, v in result.extras.items()}
    if result.failed is not None:
        record["failed"] = result.failed
    if result.role != "ours" and (ratio := comparison.ratio(result.name)) is not None:
        record["ours_is_times_as_good"] = ratio
    return record
