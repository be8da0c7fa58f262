"""The folder of a run: `runs/<date>-<name>-<id>/` with config, record, log, metrics, checkpoints.

It belongs to one run, and while it is open to one process, until that lets go or dies. The id of a
flow run is all 32 digits of its UUID: those that a schedule makes in one go share the first.
`find_run_dir` finds the folder, `open_run_dir` makes it and locks it; `ups.runs.record` says what
happened in it, `ups.runs.index` reads many.
"""

from __future__ import annotations

import json
import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from ups.config import RunConfig, dump_config
from ups.errors import ConfigError, RunError
from ups.files import LOCK_POLL_S, exclusive_lock, lock_now, write_atomically, write_json
from ups.runs.stored import RunInfo, read_file

CONFIG, LOCK = "config.yaml", ".lock"
OVERWRITTEN = "overwritten.json"
CHECKPOINTS, LAST, BEST = "checkpoints", "last.pt", "best.pt"
UNVERIFIED = "unverified.pt"  # beside them, of the run itself alone: its data may turn out false
STAMP = "%Y%m%d-%H%M%S"
FOLDER = re.compile(r"((\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d))-([A-Za-z0-9_.-]+)-([A-Za-z0-9_.]+)")
# A program that a killed run was just starting has the lock until it replaces its image.
HOLD_WAIT_S = 0.5
EARLIER_DIGITS = 8  # of a flow run's id, in the folders of earlier versions

_held: dict[Path, int] = {}  # the locks that this process has


class FolderName(NamedTuple):
    """The parts of the name of a run's folder."""

    stamp: str
    name: str
    id: str


def parse_folder_name(text: str) -> FolderName | None:
    """Take `20261123-205537-smoke-136ff0b8` apart; None if no run's folder is called so."""
    parts = FOLDER.fullmatch(text)
    if parts is None:
        return None
    stamp, *numbers, name, run_id = parts.groups()
    try:
        datetime(*map(int, numbers))  # type: ignore[arg-type]  # strptime is ten times as slow
    except ValueError:  # digits, but no moment
        return None
    return FolderName(stamp, name, run_id)


def check_id(run_id: str) -> None:
    """Refuse an id that would make a folder's name ambiguous.

    Raises:
        ConfigError: it cannot be the last part of a folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.]+", run_id):
        raise ConfigError(f"run id {run_id!r}: expected letters, digits, _ and . only")


def find_run_dir(runs_dir: Path, run_id: str | UUID) -> Path | None:
    """Find the folder of this very run; None where it has none.

    Args:
        run_id: a UUID is a flow run's, a text that of a run of `ups train`.
    Raises:
        RunError: the folder of this name is another run's, by its record.
    """
    flow_run_id = str(run_id) if isinstance(run_id, UUID) else None
    for run_dir in _with_id(runs_dir, _last_part(run_id)):
        info = RunInfo.load(run_dir)
        if info is not None and info.flow_run_id != flow_run_id:
            found = f"flow run {info.flow_run_id}" if info.flow_run_id else "a run of `ups train`"
            remedy = "move the folder elsewhere" if flow_run_id else "give another id, or none"
            raise RunError(f"{run_dir}: found the folder of {found}, not of run {run_id}: {remedy}")
        return run_dir
    if flow_run_id is not None:  # the first digits are not one run's alone: the record decides
        for run_dir in _with_id(runs_dir, flow_run_id[:EARLIER_DIGITS]):
            info = RunInfo.load(run_dir)
            if info is not None and info.flow_run_id == flow_run_id:
                return run_dir
    return None


def _last_part(run_id: str | UUID) -> str:
    """What the folder's name ends with."""
    return run_id.hex if isinstance(run_id, UUID) else run_id


def _with_id(runs_dir: Path, last_part: str) -> list[Path]:
    named = [(path, parse_folder_name(path.name)) for path in runs_dir.glob(f"*-{last_part}")]
    return sorted(path for path, name in named if name is not None and name.id == last_part)


def open_run_dir(config: RunConfig, run_id: str | UUID) -> Path:
    """Open the folder of this run, made where it has none; a retry gets the same one.

    It is this process's alone until `recorded` ends, or the process does, however that happens.
    Within the process the run may open it again.

    Args:
        run_id: as in `find_run_dir`.
    Raises:
        ConfigError: the id cannot be the last part of a folder's name.
        RunError: the folder is another run's, or another process has it open.
    """
    last_part = _last_part(run_id)
    check_id(last_part)
    with exclusive_lock(config.runs_dir / LOCK):  # of two that begin at once, one makes it
        name = f"{time.strftime(STAMP, time.gmtime())}-{config.name}-{last_part}"
        run_dir = find_run_dir(config.runs_dir, run_id) or config.runs_dir / name
        if not _hold(run_dir):
            info = RunInfo.load(run_dir)
            where = f" (process {info.pid} on {info.host}, by its record)" if info else ""
            raise RunError(
                f"{run_dir}: found open in another process{where}, where this run goes on: wait "
                "until it has ended, or end it, then start again"
            )
    write_atomically(run_dir / CONFIG, dump_config(config).encode(), durable=False)
    return run_dir


def has_to_build(run_dir: Path, key: str, found: str | None) -> bool:
    """Whether a run that overwrites the cache has this entry still to build.

    The run notes which generation it found first: that one is built again, by a retry if the first
    attempt did not get there. Whatever stands there later was built since. No clock decides, and
    it does not matter how long before its start a run was created.

    Args:
        found: the generation that is there now; None without a valid one.
    """
    path = run_dir / OVERWRITTEN
    noted: dict[str, str | None] = read_file(path, json.loads) or {}
    if key not in noted:
        noted[key] = found
        write_json(path, noted)
    return noted[key] == found


def checkpoint_to_resume(run_dir: Path, given: Path | None) -> Path | None:
    """The run's own last checkpoint, which a retry goes on from; else the one it was given."""
    last = run_dir / CHECKPOINTS / LAST
    return last if last.exists() else given


def _hold(run_dir: Path) -> bool:
    """Take the folder's lock, or have it already; False where another process has it."""
    path, deadline = (run_dir / LOCK).resolve(), time.monotonic() + HOLD_WAIT_S
    while path not in _held:
        if (lock := lock_now(path)) is not None:
            _held[path] = lock
        elif time.monotonic() > deadline:
            return False
        else:
            time.sleep(LOCK_POLL_S)
    return True


def let_go(run_dir: Path) -> None:
    """Free the folder's lock; nothing happens where this process does not have it."""
    lock = _held.pop((run_dir / LOCK).resolve(), None)
    if lock is not None:
        os.close(lock)


def _let_go_of_all() -> None:
    for lock in _held.values():
        os.close(lock)
    _held.clear()


# A lock is held while any process has its file open. A program that this process starts does not
# inherit it (O_CLOEXEC); a forked child would, and keep the folder locked after the run was killed.
os.register_at_fork(after_in_child=_let_go_of_all)
