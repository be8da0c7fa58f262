"""The folder of a run: `runs/<date>-<name>-<id>/` with config, metrics, checkpoints, pictures."""

from __future__ import annotations

import time
from pathlib import Path

from ups.config import RunConfig, dump_config

SHORT_ID = 8


def open_run_dir(config: RunConfig, run_id: str) -> Path:
    """The folder of this run; the same one when a run is retried."""
    short = run_id[:SHORT_ID]
    existing = sorted(config.runs_dir.glob(f"*-{short}"))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir = existing[0] if existing else config.runs_dir / f"{stamp}-{config.name}-{short}"
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config))
    return run_dir
