"""The scenarios of a startup benchmark: what is there before a run, and what is off in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ups.config import SPLITS, Features, Model, load_config
from ups.config_data import Task
from ups.errors import ConfigError

CONFIG = "benchmark"  # whose runs are timed, unless another is named
OTHER_DIM = 48
NUM_SCORED = 8  # trajectories of val and of test: enough for a run to end as others do

Before = Literal["nothing", "data", "data and cache"]


class Scenario(Model):
    """
    Attributes:
        about: what it shows, in a line.
        before: what is there when the run is triggered.
        overrides: dotted config values of the run.
        env: of the run's process.
        base: the scenario that it differs from in one optimisation alone.
    """

    name: str
    about: str
    before: Before
    overrides: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    base: str | None = None
    needs_gpu: bool = False


def _without(feature: str, base: str, **others: Any) -> Scenario:
    return Scenario(
        name=f"no-{feature}",
        about=f"{base} with features.{feature} off",
        before="nothing" if base == "cold" else "data and cache",
        overrides={f"features.{feature}": False},
        base=base,
        **others,
    )


SCENARIOS = (
    Scenario(
        name="legacy",
        about="all features off: one download after the other, batch 4, one file per trajectory",
        before="nothing",
        overrides={"features": Features.legacy().model_dump()},
    ),
    Scenario(name="cold", about="nothing staged, nothing cached", before="nothing"),
    Scenario(name="warm", about="the same config again", before="data and cache"),
    Scenario(
        name="changed-config",
        about=f"latent.dim {OTHER_DIM}: data staged, cache built anew",
        before="data",
        overrides={"latent.dim": OTHER_DIM},
    ),
    _without("parallel_downloads", "cold"),
    _without("parallel_encode", "cold"),
    _without("gpu_encode", "cold", needs_gpu=True),
    _without("warm_up", "cold"),
    Scenario(
        name="no-cache",
        about="cold without a cache: each batch encoded on demand (features.preload off)",
        before="nothing",
        overrides={"features.preload": "off"},
        base="cold",
    ),
    _without("reuse_cache", "warm"),
    Scenario(
        name="no-preload",
        about="warm with batches read from disk (features.preload disk)",
        before="data and cache",
        overrides={"features.preload": "disk"},
        base="warm",
    ),
    Scenario(
        name="no-warm_start",
        about="warm in a fresh interpreter (UPS_START_MODE=cold)",
        before="data and cache",
        env={"UPS_START_MODE": "cold"},
        base="warm",
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
PLAN = ("legacy", "cold", "warm", "changed-config")
# The sets differ in that `plan` fails where what the plan asks is not met.
SETS: dict[str, tuple[str, ...]] = {
    "nightly": PLAN,
    "plan": PLAN,
    "all": tuple(BY_NAME),
}
BASES: dict[str, str | None] = {scenario.name: scenario.base for scenario in SCENARIOS}


def choose(names: Sequence[str], has_gpu: bool) -> tuple[Scenario, ...]:
    """The scenarios of these names and sets, with the bases that they are compared with.

    Those that need a GPU are left out where there is none, unless asked for by name.

    Raises:
        ConfigError: an unknown name, or one that needs a GPU where there is none.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in SETS and name not in BY_NAME:
            raise ConfigError(
                f"scenarios: found {name!r}, expected sets ({', '.join(SETS)}) or scenarios "
                f"({', '.join(BY_NAME)})"
            )
        if name in BY_NAME and BY_NAME[name].needs_gpu and not has_gpu:
            raise ConfigError(f"scenarios: {name} needs a GPU, and torch sees none here")
        members = SETS.get(name, (name,))
        wanted |= {m for m in members if has_gpu or not BY_NAME[m].needs_gpu}
    if not wanted:
        raise ConfigError("scenarios: found none, expected at least one")
    wanted |= {base for name in wanted if (base := BASES[name]) is not None}
    return tuple(scenario for scenario in SCENARIOS if scenario.name in wanted)


def overrides_of(
    scenario: Scenario, folder: Path, num_trajectories: int, config: str = CONFIG
) -> dict[str, Any]:
    """Config values of a scenario's run, with data, cache and runs in a folder of its own.

    Args:
        num_trajectories: to train on, of all tasks together; one at least of each.
        config: of the benchmark, whose tasks are the run's.
    Raises:
        ConfigError: it has faults.
    """
    own = folder.resolve() / scenario.name
    data = load_config(config).data
    share = max(1, num_trajectories // len(data.tasks))
    tasks = [_of_size(task, share) for task in data.tasks]
    of_data = (
        {"data.task": tasks}
        if isinstance(data.task, tuple)
        else {f"data.{key}": tasks[0][key] for key in ("sources", "generate")}
    )
    return {
        "name": scenario.name,
        "data.root": str(own / "data"),
        "training.latent_cache_dir": str(own / "cache"),
        "runs_dir": str(own / "runs"),
        **of_data,
        **scenario.overrides,
    }


def _of_size(task: Task, num_trajectories: int) -> dict[str, Any]:
    """The task with objects of its own, of as many trajectories."""
    given, prefix = task.model_dump(mode="json"), f"{task.name}/benchmark-{num_trajectories}"
    counts = {"train": num_trajectories, "val": NUM_SCORED, "test": NUM_SCORED}
    return {
        **given,
        "sources": {s: [{"key": f"{prefix}/{task.name}_{s}.h5"}] for s in SPLITS},
        "generate": {**(given["generate"] or {}), "num_trajectories": counts},
    }
