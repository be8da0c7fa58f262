"""`python -m ups.tracking NAME RUN_DIR`: one tracker that follows a run.

A line of its standard input tells it how the run ended: completed, failed or stopped. No line
tells it that the run was killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ups.runs_index import read_run
from ups.tracking.follow import follow
from ups.tracking.protocol import Tracker

NICENESS = 10  # training goes first


def main() -> int:
    name, run_dir = sys.argv[1], Path(sys.argv[2])
    os.nice(NICENESS)
    try:
        follow(lambda: _open(name, run_dir), run_dir, sys.stdin.fileno())
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 (other people's packages, the network, the disk)
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        return 1
    return 0


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
