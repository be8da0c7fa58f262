"""Put a config's generated data set into the object store, where it has none.

    python -m deployments.seed CONFIG [OVERRIDES as JSON]

A process of its own, so that it works while the Prefect server starts. Where nothing is missing
it imports neither torch nor h5py.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import SPLITS, RunConfig, Source, Split, load_config
from ups.errors import ConfigError, UpsError

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

REPORT_EVERY_S = 15.0


def is_seeded_by_us(config: RunConfig) -> bool:
    return config.data.generate is not None and config.data.sources is not None


def seed(config: RunConfig) -> list[Split]:
    """Generate and upload the splits whose object is missing; returns them.

    Raises:
        ConfigError: a split with `data.generate` has more than one source.
        UpsError: the store cannot be reached, or the upload failed.
    """
    from ups.data.objectstore import ObjectStore

    data = config.data
    if data.generate is None or data.sources is None:
        return []
    store = ObjectStore(data.endpoint_url)
    missing = []
    for split in SPLITS:
        source = _only_source(split, data.sources[split])
        if not store.exists(source.bucket or data.bucket, source.key):
            missing.append(split)
    for split in missing:
        _generate(config, split, data.sources[split][0], store)
    store.close()
    return missing


def _generate(config: RunConfig, split: Split, source: Source, store: ObjectStore) -> None:
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
            _say(reported - begin, f"{split}: {done} of {num} trajectories")

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
    _say(
        time.monotonic() - begin,
        f"{split}: {num} trajectories generated, {size_mb:.0f} MB in {bucket}/{source.key}",
    )


def _say(seconds: float, what: str) -> None:
    print(f"  {'data':<15} {seconds:5.1f} s  {what}", flush=True)


def _only_source(split: Split, sources: list[Source]) -> Source:
    if len(sources) != 1:
        raise ConfigError(
            f"data.sources.{split}: found {len(sources)} objects, expected 1 with data.generate"
        )
    return sources[0]


def main() -> int:
    overrides = json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        seed(load_config(sys.argv[1], overrides))
    except UpsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
