"""The scenarios of a startup benchmark: what a run finds, what is off in it, and their order."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from ups.config import SPLITS, Features, Model, Problem, load_config
from ups.errors import ConfigError

CONFIG = "benchmark"  # whose runs are timed, unless another is named
OTHER_DIM = 48
NUM_SCORED = 8  # trajectories of val and of test: enough for a run to end as others do

T = TypeVar("T")
Before = Literal["nothing", "data", "data and cache"]


class Scenario(Model):
    """A way of starting up that is timed.

    Attributes:
        before: what a run of it finds when it is triggered.
        overrides: dotted config values of the run.
        env: of the run's process.
        base: the scenario that it differs from in one optimisation alone.
    """

    name: str
    before: Before
    overrides: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    base: str | None = None
    needs_gpu: bool = False


def _without(what: str, base: str, **others: Any) -> Scenario:
    """The base with a feature off, or with what else is given."""
    known = {"overrides": {f"features.{what}": False}, **others}
    before = "nothing" if base == "cold" else "data and cache"
    return Scenario(name=f"no-{what}", before=before, base=base, **known)


SCENARIOS = (
    # One download after the other, batches of 4, a file per trajectory.
    Scenario(
        name="legacy", before="nothing", overrides={"features": Features.legacy().model_dump()}
    ),
    Scenario(name="cold", before="nothing"),
    Scenario(name="warm", before="data and cache"),
    Scenario(name="changed-config", before="data", overrides={"latent.dim": OTHER_DIM}),
    _without("parallel_downloads", "cold"),
    _without("parallel_encode", "cold"),
    _without("gpu_encode", "cold", needs_gpu=True),
    _without("warm_up", "cold"),
    # All is fetched, then all is encoded, then trained on.
    _without("stream", "cold", overrides={"features.stream": "off"}),
    Scenario(
        name="no-stream-changed-config",
        before="data",
        overrides={"latent.dim": OTHER_DIM, "features.stream": "off"},
        base="changed-config",
    ),
    # Each batch is encoded on demand.
    _without("cache", "cold", overrides={"features.preload": "off"}),
    _without("reuse_cache", "warm"),
    # Batches are read from disk.
    _without("preload", "warm", overrides={"features.preload": "disk"}),
    # In a fresh interpreter.
    _without("warm_start", "warm", overrides={}, env={"UPS_START_MODE": "cold"}),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
PLAN = ("legacy", "cold", "warm", "changed-config")
# The sets differ in that `plan` fails where what the plan asks is not met.
SETS: dict[str, tuple[str, ...]] = {"nightly": PLAN, "plan": PLAN, "all": tuple(BY_NAME)}
BASES: dict[str, str | None] = {scenario.name: scenario.base for scenario in SCENARIOS}


# One that exists: a form offers these, and a server refuses others before there is a run.
KnownName = Annotated[str, Field(json_schema_extra={"enum": [*SETS, *BY_NAME]})]


def check_names(names: Sequence[str]) -> None:
    """Refuse what is neither a set nor a scenario.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    for name in names:
        if name not in SETS and name not in BY_NAME:
            close = difflib.get_close_matches(name, [*SETS, *BY_NAME], n=1)
            raise ConfigError(
                f"scenarios: found {name!r}, expected sets ({', '.join(SETS)}) or scenarios "
                f"({', '.join(BY_NAME)})" + (f"; did you mean {close[0]}?" if close else "")
            )
    if not names:
        raise ConfigError("scenarios: found none, expected at least one")


def choose(names: Sequence[str], has_gpu: bool) -> tuple[Scenario, ...]:
    """The scenarios of these names and sets, with the bases that they are compared with.

    Those that need a GPU are left out where there is none, unless asked for by name.

    Raises:
        ConfigError: an unknown name, none, or one that needs a GPU where there is none.
    """
    check_names(names)
    wanted: set[str] = set()
    for name in names:
        if name in BY_NAME and BY_NAME[name].needs_gpu and not has_gpu:
            raise ConfigError(f"scenarios: {name} needs a GPU, and torch sees none here")
        members = SETS.get(name, (name,))
        wanted |= {m for m in members if has_gpu or not BY_NAME[m].needs_gpu}
    wanted |= {base for name in wanted if (base := BASES[name]) is not None}
    return tuple(scenario for scenario in SCENARIOS if scenario.name in wanted)


def in_turn(contenders: Sequence[T], repeat: int) -> tuple[T, ...]:
    """The order of a round: each round is a row of a balanced Latin square.

    Over as many rounds as there are contenders (twice as many for an odd number) each one takes
    every place equally often, and follows every other equally often, so that what a run leaves
    behind favours none. Source: E. J. Williams (1949), for carry-over of first order.

    Args:
        repeat: from 1.
    """
    num = len(contenders)
    zigzag = [(i + 1) // 2 if i % 2 else (num - i // 2) % num for i in range(num)]
    order = [contenders[(i + repeat - 1) % num] for i in zigzag]
    is_mirrored = num % 2 == 1 and repeat % 2 == 0
    return tuple(reversed(order) if is_mirrored else order)


def overrides_of(
    scenario: Scenario, folder: Path, num_trajectories: int, config: str = CONFIG
) -> dict[str, Any]:
    """Config values of a scenario's run, with data, cache and runs in a folder of its own.

    Args:
        num_trajectories: to train on, of all problems together; one at least of each.
        config: of the benchmark, whose problems are the run's.
    Raises:
        ConfigError: it has faults.
    """
    own = folder.resolve() / scenario.name
    data = load_config(config).data
    share = max(1, num_trajectories // len(data.problems))
    problems = [_of_size(problem, share) for problem in data.problems]
    of_data = (
        {"data.task": problems}
        if isinstance(data.task, tuple)
        else {f"data.{key}": problems[0][key] for key in ("sources", "generate")}
    )
    return {
        "name": scenario.name,
        "data.root": str(own / "data"),
        "training.latent_cache_dir": str(own / "cache"),
        "runs_dir": str(own / "runs"),
        **of_data,
        **scenario.overrides,
    }


def _of_size(problem: Problem, num_trajectories: int) -> dict[str, Any]:
    """The problem with objects of its own, of as many trajectories."""
    given, prefix = problem.model_dump(mode="json"), f"{problem.name}/benchmark-{num_trajectories}"
    counts = {"train": num_trajectories, "val": NUM_SCORED, "test": NUM_SCORED}
    return {
        **given,
        "sources": {s: [{"key": f"{prefix}/{problem.name}_{s}.h5"}] for s in SPLITS},
        "generate": {**(given["generate"] or {}), "num_trajectories": counts},
    }
