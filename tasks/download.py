"""Stage the sources of a split."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from tasks.progress import progress_artifact
from tasks.timeline import phase_task
from ups.config import RunConfig, Split
from ups.data.sources import Staged, stage
from ups.progress import logged

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore


@phase_task("download", task_run_name="1 download [{label}]")
def download(
    config: RunConfig, split: Split, label: str, store: ObjectStore | None, stop: threading.Event
) -> list[Staged]:
    """
    Args:
        config: of one task.
        label: the split, after the name of its task where there are several.
    """
    key = re.sub("[^a-z0-9]+", "-", f"download-{label}".lower())  # all that an artifact's key takes
    with progress_artifact(key, f"download of the {label} split") as progress:
        in_log = logged(f"[{label}] fetched", "MB", 1e6)

        def told(done: int, total: int) -> None:
            progress.update(done, total)
            in_log(done, total)

        staged = stage(config, split, store, stop=stop, progress=told)
        if not any(source.fetched_bytes for source in staged):
            progress.forget()
        return staged
