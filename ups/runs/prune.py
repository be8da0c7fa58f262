"""Choose and delete folders of runs, never one that a run is in."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ups.errors import RunError
from ups.files import lock_now
from ups.runs.folder import LOCK
from ups.runs.index import RunSummary


def plan_prune(
    found: Sequence[RunSummary], *, keep: int | None = None, older_than_s: float | None = None
) -> list[RunSummary]:
    """What goes: runs beyond the newest `keep`, and those that began longer ago.

    Args:
        found: the newest first.
    """
    before = None if older_than_s is None else time.time() - older_than_s
    return [
        run
        for position, run in enumerate(found)
        if run.state != "running"
        and (
            (keep is not None and position >= keep)
            or (before is not None and run.started_at < before)
        )
    ]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, at any depth."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def remove(folder: Path) -> bool:
    """Delete the folder of a run, unless a process has it open; returns whether it did.

    Raises:
        RunError: the operating system refused.
    """
    try:
        lock = lock_now(folder / LOCK)
        if lock is None:
            return False
        try:
            shutil.rmtree(folder)
        finally:
            os.close(lock)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be removed: {error}; see who owns the folder of the runs"
        ) from error
    return True
