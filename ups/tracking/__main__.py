"""`python -m ups.tracking NAME RUN_DIR`: one tracker that follows a run.

A line of its standard input says how the run ended: completed, failed or stopped. The end of the
input without a line says that the run was killed.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from ups.runs.index import read_run
from ups.runs.metrics import EPOCH, METRICS, read_metrics
from ups.tracking.protocol import Tracker

NICENESS = 10  # training goes first
POLL_S = 1.0
KILLED = "killed"


def main() -> int:
    name, run_dir = sys.argv[1], Path(sys.argv[2])
    os.nice(NICENESS)
    try:
        follow(_open(name, run_dir), run_dir, sys.stdin.fileno())
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 (other people's packages, the network, the disk)
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        return 1
    return 0


def follow(tracker: Tracker, run_dir: Path, end_fd: int) -> None:
    """Log every epoch as it is written, and finish when the run has ended.

    Args:
        end_fd: a file descriptor with the line that says how the run ended.
    """
    known, seen, ended = tracker.epochs_known, 0, ""
    while not ended:
        if select.select([end_fd], [], [], POLL_S)[0]:
            ended = os.read(end_fd, 64).decode().strip() or KILLED
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


def _open(name: str, run_dir: Path) -> Tracker:
    files = read_run(run_dir)
    if name == "wandb":
        from ups.tracking.wandb import WandbTracker

        return WandbTracker(files)
    from ups.tracking.tensorboard import TensorboardTracker

    return TensorboardTracker(files)


if __name__ == "__main__":
    # All is sent: what wandb still does at exit takes 20 s where its server does not answer.
    os._exit(main())
