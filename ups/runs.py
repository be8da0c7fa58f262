"""The folder of a run: `runs/<date>-<name>-<id>/` with config, metrics, checkpoints, pictures."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ups.config import RunConfig, dump_config
from ups.errors import ConfigError


def open_run_dir(config: RunConfig, run_id: str) -> Path:
    """The folder of this run; the same one when a run is retried.

    Raises:
        ConfigError: the id cannot be the last part of a folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.]+", run_id):
        raise ConfigError(f"run id {run_id!r}: expected letters, digits, _ and . only")
    existing = sorted(config.runs_dir.glob(f"*-{run_id}"))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir = existing[0] if existing else config.runs_dir / f"{stamp}-{config.name}-{run_id}"
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config))
    return run_dir
