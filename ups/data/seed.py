"""Put a config's generated data set into the object store, where it has none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import SPLITS, Problem, RunConfig, Source, Split
from ups.errors import ConfigError

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

REPORT_EVERY_S = 15.0
Say = Callable[[float, str], None]
"""Takes a line of progress: seconds since the split was begun, what was done."""


def is_seeded_by_us(problem: Problem) -> bool:
    """Whether the problem's objects are generated where the store lacks them."""
    return problem.generate is not None and problem.sources is not None


def seed(config: RunConfig, say: Say) -> list[str]:
    """Generate and upload the splits whose object is missing; returns their labels.

    Where nothing is missing neither torch nor h5py is imported.

    Raises:
        ConfigError: a split with `generate` has more than one source.
        UpsError: the store cannot be reached, or the upload failed.
    """
    from ups.data.objectstore import ObjectStore

    data = config.data
    problems = [problem for problem in data.problems if is_seeded_by_us(problem)]
    if not problems:
        return []
    store = ObjectStore(data.endpoint_url)
    try:
        missing = []
        for problem in problems:
            for split in SPLITS:
                source = only_source(config, problem, split)
                if not store.exists(*data.place_of(source)):
                    missing.append((problem, split, source))
        for problem, split, source in missing:
            _generate(config, problem, split, source, store, say)
    finally:
        store.close()
    return [data.label(problem, split) for problem, split, _ in missing]


def _generate(
    config: RunConfig, problem: Problem, split: Split, source: Source, store: ObjectStore, say: Say
) -> None:
    import torch

    from ups.data.generate import generate

    data, settings = config.data, problem.generate
    assert settings is not None
    parameter = settings.parameter_of(problem.equation)
    assert parameter is not None, "a config is checked for it when it is loaded"
    (bucket, key), label = data.place_of(source), data.label(problem, split)
    num = settings.num_trajectories[split]
    begin = reported = time.monotonic()

    def progress(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            say(reported - begin, f"{label}: {done} of {num} trajectories")

    with tempfile.TemporaryDirectory(prefix="ups-seed-") as folder:
        path = Path(folder) / Path(key).name
        generate(
            path,
            num,
            problem.equation,
            parameter,
            # Splits that began from one seed would share their trajectories.
            seed=settings.seed * len(SPLITS) + SPLITS.index(split),
            grid_points=data.grid_points,
            device="cuda" if torch.cuda.is_available() else "cpu",
            progress=progress,
        )
        size_mb = path.stat().st_size / 1e6
        store.upload(path, bucket, key)
    say(
        time.monotonic() - begin,
        f"{label}: {num} trajectories generated, {size_mb:.0f} MB in {bucket}/{key}",
    )


def only_source(config: RunConfig, problem: Problem, split: Split) -> Source:
    """The object that the split is generated into.

    Raises:
        ConfigError: there are more, or none, and only one can be generated.
    """
    sources = (problem.sources or {}).get(split, [])
    if len(sources) != 1:
        key = config.data.key_of(problem)
        raise ConfigError(
            f"{key}.sources.{split}: found {len(sources)} objects, expected 1 with {key}.generate"
        )
    return sources[0]
