"""What differs between two runs: their configs, their startups phase by phase, their scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, computed_field

from ups.config import Model, flatten
from ups.runs.breakdown import STARTUP_PHASES
from ups.runs.index import RunFiles, RunSummary, read_run

TTFS = "time to first step"


Figure = Annotated[
    float | None, AfterValidator(lambda value: value if math.isfinite(value or 0) else None)
]


class Change(Model):
    """A figure of two runs; None where a run has none, or one that is not finite."""

    before: Figure
    after: Figure

    @computed_field  # type: ignore[prop-decorator]
    @property
    def difference(self) -> float | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


class RunComparison(Model):
    """What differs between two runs.

    Attributes:
        config: dotted key → (before, after), of those that differ; None where it is not set.
        startup: phase → seconds, the whole time to the first step before them.
        nrmse: of the rollouts of the test split; of several problems the mean.
        problems: name → the same of each, where there are several that both runs were scored on.
    """

    before: RunSummary
    after: RunSummary
    config: dict[str, tuple[Any, Any]]
    startup: dict[str, Change]
    nrmse: Change
    problems: dict[str, Change] = Field(alias="tasks")


def compare(before: Path, after: Path) -> RunComparison:
    """Compare two runs by their folders."""
    a, b = read_run(before), read_run(after)
    first, second = a.summary(), b.summary()
    flat_a, flat_b = dict(flatten(a.config)), dict(flatten(b.config))
    keys = [*flat_a, *(key for key in flat_b if key not in flat_a)]
    seconds_a, seconds_b = startup_s(a, first.ttfs_s), startup_s(b, second.ttfs_s)
    problems_a, problems_b = a.nrmse_of_problems(), b.nrmse_of_problems()
    phases = [p for p in (TTFS, *STARTUP_PHASES, "unaccounted") if p in seconds_a or p in seconds_b]
    return RunComparison(
        before=first,
        after=second,
        config={
            key: (flat_a.get(key), flat_b.get(key))
            for key in keys
            if flat_a.get(key) != flat_b.get(key)
        },
        startup={
            phase: Change(before=seconds_a.get(phase), after=seconds_b.get(phase))
            for phase in phases
        },
        nrmse=Change(before=first.nrmse_rollout, after=second.nrmse_rollout),
        problems={
            name: Change(before=problems_a[name], after=problems_b[name])
            for name in problems_a
            if name in problems_b
        },
    )


def startup_s(files: RunFiles, ttfs_s: float | None) -> dict[str, float]:
    phases = files.breakdown.phase_seconds if files.breakdown else {}
    return phases if ttfs_s is None else {TTFS: ttfs_s, **phases}
