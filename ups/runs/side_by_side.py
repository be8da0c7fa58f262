"""Several runs side by side: what differs in their configs, their startups, their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from ups.config import MOST_NAMED, Model, flatten, run_title
from ups.runs.breakdown import STARTUP_PHASES
from ups.runs.compare import TTFS, Figure, startup_s
from ups.runs.index import RunFiles, RunSummary
from ups.runs.metrics import VAL

SEED = "training.seed"


class SideBySide(Model):
    """What several runs have, in their order.

    Attributes:
        config: dotted key → the value of each, of those that differ; None where it is not set.
        startup: phase → seconds, the whole time to the first step before them.
        best_val: the lowest nRMSE on val.
        nrmse: of the rollouts of the test split; of several problems the mean.
        problems: name → the same of each, where there are several.
    """

    runs: tuple[RunSummary, ...]
    config: dict[str, tuple[Any, ...]]
    startup: dict[str, tuple[Figure, ...]]
    best_val: tuple[Figure, ...]
    nrmse: tuple[Figure, ...]
    problems: dict[str, tuple[Figure, ...]] = Field(alias="tasks")

    def titles(self) -> list[str]:
        """What each run is called beside the others: by what differs, where that is short."""
        differs = {key: values for key, values in self.config.items() if key != "name"}
        named = [run.title for run in self.runs]
        if differs and len(differs) <= MOST_NAMED:
            own = [{key: v[i] for key, v in differs.items()} for i in range(len(self.runs))]
            named = [run_title(run.name, of) for run, of in zip(self.runs, own, strict=True)]
        return [
            f"{name} …{run.id[-4:]}" if named.count(name) > 1 else name
            for name, run in zip(named, self.runs, strict=True)
        ]

    def groups(self) -> list[str]:
        """Of each run what it is called by where the seed does not count."""
        keys = [key for key in self.config if key != SEED]
        names = [
            ", ".join(f"{key}={_plain(self.config[key][i])}" for key in keys)
            for i in range(len(self.runs))
        ]
        return [name or run.name for name, run in zip(names, self.runs, strict=True)]


def side_by_side(files: Sequence[RunFiles]) -> SideBySide:
    """Set runs side by side, by what their folders hold."""
    runs = [each.summary() for each in files]
    configs = [dict(flatten(each.config)) for each in files]
    seconds = [startup_s(each, run.ttfs_s) for each, run in zip(files, runs, strict=True)]
    problems = [each.nrmse_of_problems() for each in files]
    return SideBySide(
        runs=tuple(runs),
        config={
            key: values
            for key, values in ((key, _row(configs, key)) for key in _union(configs))
            if any(value != values[0] for value in values)
        },
        startup={
            phase: _row(seconds, phase)
            for phase in (TTFS, *STARTUP_PHASES, "unaccounted")
            if any(phase in of for of in seconds)
        },
        best_val=tuple(_lowest(each.epochs) for each in files),
        nrmse=tuple(run.nrmse_rollout for run in runs),
        problems={name: _row(problems, name) for name in _union(problems)},
    )


def _union(of: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for each in of for key in each))


def _row(of: Iterable[Mapping[str, Any]], key: str) -> tuple[Any, ...]:
    return tuple(each.get(key) for each in of)


def _lowest(epochs: Sequence[Mapping[str, Any]]) -> float | None:
    return min((row[VAL] for row in epochs if row.get(VAL) is not None), default=None)


def _plain(value: Any) -> str:
    return "–" if value is None else str(value)
