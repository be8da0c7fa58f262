"""Put a config's generated data set into the object store, where it has none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import SPLITS, RunConfig, Source, Split
from ups.config_data import Task
from ups.errors import ConfigError

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

REPORT_EVERY_S = 15.0
Say = Callable[[float, str], None]
"""Takes a line of progress: seconds since the split was begun, what was done."""


def is_seeded_by_us(task: Task) -> bool:
    return task.generate is not None and task.sources is not None


def seed(config: RunConfig, say: Say) -> list[str]:
    """Generate and upload the splits whose object is missing; returns their labels.

    Where nothing is missing neither torch nor h5py is imported.

    Raises:
        ConfigError: a split with `generate` has more than one source.
        UpsError: the store cannot be reached, or the upload failed.
    """
    from ups.data.objectstore import ObjectStore

    data = config.data
    tasks = [task for task in data.tasks if is_seeded_by_us(task)]
    if not tasks:
        return []
    store = ObjectStore(data.endpoint_url)
    try:
        missing = []
        for task in tasks:
            for split in SPLITS:
                source = only_source(config, task, split)
                if not store.exists(source.bucket or data.bucket, source.key):
                    missing.append((task, split, source))
        for task, split, source in missing:
            _generate(config, task, split, source, store, say)
    finally:
        store.close()
    return [data.label(task, split) for task, split, _ in missing]


def _generate(
    config: RunConfig, task: Task, split: Split, source: Source, store: ObjectStore, say: Say
) -> None:
    from ups.data import generators

    data, generate = config.data, task.generate
    assert generate is not None
    bucket, label = source.bucket or data.bucket, data.label(task, split)
    num = generate.num_trajectories[split]
    begin = reported = time.monotonic()

    def progress(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            say(reported - begin, f"{label}: {done} of {num} trajectories")

    with tempfile.TemporaryDirectory(prefix="ups-seed-") as folder:
        path = Path(folder) / Path(source.key).name
        generators.generate(
            path,
            num,
            equation=task.equation,
            settings=generate,
            # Splits that began from one seed would share their trajectories.
            seed=generate.seed * len(SPLITS) + SPLITS.index(split),
            grid_points=data.grid_points,
            progress=progress,
        )
        size_mb = path.stat().st_size / 1e6
        store.upload(path, bucket, source.key)
    say(
        time.monotonic() - begin,
        f"{label}: {num} trajectories generated, {size_mb:.0f} MB in {bucket}/{source.key}",
    )


def only_source(config: RunConfig, task: Task, split: Split) -> Source:
    """
    Raises:
        ConfigError: there are more, or none, and only one can be generated.
    """
    sources = (task.sources or {}).get(split, [])
    if len(sources) != 1:
        key = config.data.key_of(task)
        raise ConfigError(
            f"{key}.sources.{split}: found {len(sources)} objects, expected 1 with {key}.generate"
        )
    return sources[0]
