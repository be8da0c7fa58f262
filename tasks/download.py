"""Stage the sources of a split."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tasks.progress import progress_artifact
from tasks.timeline import phase_task
from ups.config import RunConfig, Split
from ups.data.sources import Staged, stage
from ups.progress import logged

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore


@phase_task("download", task_run_name="1 download [{split}]")
def download(
    config: RunConfig, split: Split, store: ObjectStore | None, stop: threading.Event
) -> list[Staged]:
    with progress_artifact(f"download-{split}", f"download of the {split} split") as progress:
        in_log = logged(f"[{split}] fetched", "MB", 1e6)

        def told(done: int, total: int) -> None:
            progress.update(done, total)
            in_log(done, total)

        staged = stage(config, split, store, stop=stop, progress=told)
        if not any(source.fetched_bytes for source in staged):
            progress.forget()
        return staged
