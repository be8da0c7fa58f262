"""Contenders alternated within each repeat, and what becomes of their numbers.

A contender is a function that does its work once and returns a value in the comparison's unit,
or a `Sample` with further values. Each repeat has an order of its own, so that a slow moment of the
machine, and what a contender leaves behind, meet each. Warm-up repeats run first and are thrown
away.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from speed.worker import describe
from ups.startup.judge.compare import Spread
from ups.startup.measure.scenarios import in_turn

Role = Literal["ours", "peer", "bound"]
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, and what was noted beside it (e.g. `cpu_s_per_gb`)."""

    value: float
    extras: Mapping[str, float] = field(default_factory=dict)


Run = Callable[[], float | Sample]


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured beside others.

    Attributes:
        run: measures once, in the comparison's unit.
        before: prepares a measurement, outside of it (drops caches, removes files).
    """

    name: str
    role: Role
    run: Run
    before: Callable[[], object] | None = None

    def measure(self) -> Sample:
        if self.before is not None:
            self.before()
        found = self.run()
        return found if isinstance(found, Sample) else Sample(found)


def ours_first(
    runs: Mapping[str, Run], before: Callable[[], object] | None = None
) -> list[Contender]:
    """Contenders of which the first is ours, and the others are its peers."""
    return [
        Contender(name, "peer" if i else "ours", run, before)
        for i, (name, run) in enumerate(runs.items())
    ]


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

    def add(self, sample: Sample) -> None:
        self.values.append(sample.value)
        for name, value in sample.extras.items():
            self.extras.setdefault(name, []).append(value)

    def to_json(self, ratio: float | None) -> dict[str, Any]:
        record: dict[str, Any] = {"name": self.name, "role": self.role, "values": self.values}
        if spread := self.spread:
            record |= {"median": spread.median, "min": spread.smallest, "max": spread.largest}
        if self.extras:
            record["extras"] = self.extras
            record["extras_median"] = {k: statistics.median(v) for k, v in self.extras.items()}
        if self.failed is not None:
            record["failed"] = self.failed
        if self.role != "ours" and ratio is not None:
            record["ours_is_times_as_good"] = ratio
        return record


@dataclass(slots=True)
class Comparison:
    """A row of the table.

    Attributes:
        targets: contender → the least ratio of ours to it that is asked for.
        notes: what a reader must know to read the figures.
        section: of the report; filled in by the command that runs the section.
    """

    phase: str
    results: list[Result]
    unit: str = "s"
    better: Better = "lower"
    targets: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    section: str = ""

    @property
    def ours(self) -> Result | None:
        return next((r for r in self.results if r.role == "ours"), None)

    def ratio(self, name: str) -> float | None:
        """How many times as good ours is as `name`, by the medians; of a bound, the share of it."""
        mine = self.ours.spread if self.ours else None
        other = next((r.spread for r in self.results if r.name == name), None)
        if mine is None or other is None:
            return None
        above, below = (other, mine) if self.better == "lower" else (mine, other)
        return above.median / below.median if below.median else None

    def reached(self) -> dict[str, bool | None]:
        """Per target, whether it is reached; None where it could not be measured."""
        ratios = {name: self.ratio(name) for name in self.targets}
        return {n: None if r is None else r >= self.targets[n] for n, r in ratios.items()}

    def to_json(self) -> dict[str, Any]:
        results = [result.to_json(self.ratio(result.name)) for result in self.results]
        return {"section": self.section, **asdict(self), "results": results}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Comparison:
        names = [f.name for f in fields(Result)]
        results = [Result(**{n: r[n] for n in names if n in r}) for r in record["results"]]
        return cls(**{**record, "results": results})


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
                sample = contender.measure()
            except Exception as error:  # noqa: BLE001 (its row says so; the others go on)
                result.failed = describe(error)
                result.values, result.extras = [], {}
                continue
            if repeat >= 0:
                result.add(sample)
    return list(results.values())


def nearest_bound(results: Sequence[Result]) -> str:
    """The name of the bound that allows least, where lower is better."""
    bounds = [r for r in results if r.role == "bound"]
    return max(bounds, key=lambda r: r.spread.median if r.spread else 0.0).name
