"""Put a config's generated data set into the object store, where it has none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import SPLITS, RunConfig, Source, Split
from ups.errors import ConfigError

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

REPORT_EVERY_S = 15.0
Say = Callable[[float, str], None]
"""Takes a line of progress: seconds since the split was begun, what was done."""


def is_seeded_by_us(config: RunConfig) -> bool:
    return config.data.generate is not None and config.data.sources is not None


def seed(config: RunConfig, say: Say) -> list[Split]:
    """Generate and upload the splits whose object is missing; returns them.

    Where nothing is missing neither torch nor h5py is imported.

    Raises:
        ConfigError: a split with `data.generate` has more than one source.
        UpsError: the store cannot be reached, or the upload failed.
    """
    from ups.data.objectstore import ObjectStore

    data = config.data
    if data.generate is None or data.sources is None:
        return []
    store = ObjectStore(data.endpoint_url)
    try:
        missing = []
        for split in SPLITS:
            source = only_source(split, data.sources[split])
            if not store.exists(source.bucket or data.bucket, source.key):
                missing.append(split)
        for split in missing:
            _generate(config, split, data.sources[split][0], store, say)
    finally:
        store.close()
    return missing


def _generate(
    config: RunConfig, split: Split, source: Source, store: ObjectStore, say: Say
) -> None:
    import torch

    from ups.data import burgers

    data = config.data
    assert data.generate is not None
    bucket = source.bucket or data.bucket
    num = data.generate.num_trajectories[split]
    begin = reported = time.monotonic()

    def progress(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            say(reported - begin, f"{split}: {done} of {num} trajectories")

    with tempfile.TemporaryDirectory(prefix="ups-seed-") as folder:
        path = Path(folder) / Path(source.key).name
        burgers.generate(
            path,
            num,
            nu=data.generate.nu,
            # Splits that began from one seed would share their trajectories.
            seed=data.generate.seed * len(SPLITS) + SPLITS.index(split),
            grid_points=data.grid_points,
            device="cuda" if torch.cuda.is_available() else "cpu",
            progress=progress,
        )
        size_mb = path.stat().st_size / 1e6
        store.upload(path, bucket, source.key)
    say(
        time.monotonic() - begin,
        f"{split}: {num} trajectories generated, {size_mb:.0f} MB in {bucket}/{source.key}",
    )


def only_source(split: Split, sources: list[Source]) -> Source:
    """
    Raises:
        ConfigError: there are more, or none, and only one can be generated.
    """
    if len(sources) != 1:
        raise ConfigError(
            f"data.sources.{split}: found {len(sources)} objects, expected 1 with data.generate"
        )
    return sources[0]
