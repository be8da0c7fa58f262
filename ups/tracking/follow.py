"""Feed a tracker with what a run writes into its folder."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

from ups.runs_index import read_run
from ups.telemetry.metrics_file import EPOCH, METRICS, read_metrics
from ups.tracking.protocol import Tracker

POLL_S = 1.0
KILLED = "killed"


def follow(
    open_tracker: Callable[[], Tracker], run_dir: Path, told: int, poll_s: float = POLL_S
) -> None:
    """Open a tracker, log every epoch as it is written, and finish when the run has ended.

    Args:
        told: a file descriptor from which a line tells how the run ended; it ends without a line
            where the run was killed.
    """
    tracker = open_tracker()
    known, seen, ended = tracker.epochs_known, 0, ""
    while not ended:
        if select.select([told], [], [], poll_s)[0]:
            ended = os.read(told, 64).decode().strip() or KILLED
        path = run_dir / METRICS
        written = path.stat().st_mtime_ns if path.exists() else 0
        if written == seen:
            continue
        seen = written
        for row in read_metrics(run_dir).epochs:
            if row[EPOCH] > known:
                tracker.log(row)
                known = row[EPOCH]
    tracker.finish(read_run(run_dir), ended)
