"""The folder of a run: `runs/<date>-<name>-<id>/` with config, record, log, metrics, checkpoints.

It is one run's alone. The id of a flow run is all 32 digits of its UUID: those that a schedule
makes in one go share the first. `find_run_dir` finds the folder, `open_run_dir` makes it and locks
it. `run.json` says what the run is and how it ended, `run.log` holds the library's log lines;
`ups.runs_index` reads the folders.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

from pydantic import Field, ValidationError

from ups.background import Background
from ups.config import Model, RunConfig, dump_config
from ups.errors import ConfigError, Interrupted, RunError
from ups.files import exclusive_lock, write_atomically
from ups.run_lock import hold, let_go
from ups.telemetry.process import process_started_at

log = logging.getLogger(__name__)

CONFIG, RUN_JSON, RUN_LOG, LOCK = "config.yaml", "run.json", "run.log", ".lock"
OVERWRITTEN = "overwritten.json"
CHECKPOINTS, LAST, BEST = "checkpoints", "last.pt", "best.pt"
STAMP = "%Y%m%d-%H%M%S"
EARLIER_DIGITS = 8  # of a flow run's id, in the folders of earlier versions
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

Ended = Literal["completed", "failed", "stopped"]


class RunInfo(Model):
    """What `run.json` holds.

    Attributes:
        started_at, ended_at: Unix times in seconds; of the first attempt, and of the last.
        attempt: 1, and one more for each retry in the same folder.
        command: as typed in a shell; `deployment`: the id of the one that Prefect ran.
        host, pid, process_started_at: of the process of the last attempt.
        commit: of the code, `-dirty` at its end where files were changed.
        state: how the last attempt ended; None while it goes on, or where it was killed.
    """

    id: str
    name: str
    started_at: float
    attempt: int = 1
    command: str | None = None
    deployment: str | None = None
    flow_run_id: str | None = None
    host: str
    pid: int
    process_started_at: float
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    state: Ended | None = None
    error: str | None = None
    ended_at: float | None = None

    def save(self, run_dir: Path) -> None:
        text = self.model_dump_json(indent=1)
        write_atomically(run_dir / RUN_JSON, text.encode(), durable=False)


class FolderName(NamedTuple):
    stamp: str
    name: str
    id: str


def parse_folder_name(text: str) -> FolderName | None:
    """`20261123-205537-smoke-136ff0b8` in its parts; None if no run's folder is called so."""
    parts = re.fullmatch(r"(\d{8}-\d{6})-([A-Za-z0-9_.-]+)-([A-Za-z0-9_.]+)", text)
    if parts is None:
        return None
    try:
        time.strptime(parts[1], STAMP)
    except ValueError:  # digits, but no moment
        return None
    return FolderName(*parts.groups())


def check_id(run_id: str) -> None:
    """
    Raises:
        ConfigError: the id cannot be the last part of a folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.]+", run_id):
        raise ConfigError(f"run id {run_id!r}: expected letters, digits, _ and . only")


def read_info(run_dir: Path) -> RunInfo | None:
    """What `run.json` holds; None where it is missing or, which is logged, not as expected."""
    path = run_dir / RUN_JSON
    try:
        return RunInfo.model_validate_json(path.read_bytes()) if path.exists() else None
    except (OSError, ValidationError) as error:
        log.warning("%s is left out: %s", path, error)
        return None


def find_run_dir(runs_dir: Path, run_id: str | UUID) -> Path | None:
    """The folder of this very run; None where it has none.

    Args:
        run_id: a UUID is a flow run's, a text that of a run of `ups train`.
    Raises:
        RunError: the folder of this name is another run's, by its record.
    """
    flow_run_id = str(run_id) if isinstance(run_id, UUID) else None
    for run_dir in _with_id(runs_dir, _last_part(run_id)):
        info = read_info(run_dir)
        if info is not None and info.flow_run_id != flow_run_id:
            found = f"flow run {info.flow_run_id}" if info.flow_run_id else "a run of `ups train`"
            remedy = "move the folder elsewhere" if flow_run_id else "give another id, or none"
            raise RunError(f"{run_dir}: found the folder of {found}, not of run {run_id}: {remedy}")
        return run_dir
    if flow_run_id is not None:  # the first digits are not one run's alone: the record decides
        for run_dir in _with_id(runs_dir, flow_run_id[:EARLIER_DIGITS]):
            info = read_info(run_dir)
            if info is not None and info.flow_run_id == flow_run_id:
                return run_dir
    return None


def _last_part(run_id: str | UUID) -> str:
    """Of the folder's name."""
    return run_id.hex if isinstance(run_id, UUID) else run_id


def _with_id(runs_dir: Path, last_part: str) -> list[Path]:
    named = [(path, parse_folder_name(path.name)) for path in runs_dir.glob(f"*-{last_part}")]
    return sorted(path for path, name in named if name is not None and name.id == last_part)


def open_run_dir(config: RunConfig, run_id: str | UUID) -> Path:
    """The folder of this run, made where it has none; a retry gets the same one.

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
        name = f"{time.strftime(STAMP)}-{config.name}-{last_part}"
        run_dir = find_run_dir(config.runs_dir, run_id) or config.runs_dir / name
        if not hold(run_dir / LOCK):
            info = read_info(run_dir)
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
    noted: dict[str, str | None] = json.loads(path.read_bytes()) if path.exists() else {}
    if key not in noted:
        noted[key] = found
        write_atomically(path, json.dumps(noted, indent=1).encode())
    return noted[key] == found


def checkpoint_to_resume(run_dir: Path, given: Path | None) -> Path | None:
    """The run's own last checkpoint, which a retry goes on from; else the one it was given."""
    last = run_dir / CHECKPOINTS / LAST
    return last if last.exists() else given


@contextmanager
def recorded(
    run_dir: Path,
    *,
    command: str | None = None,
    deployment: str | None = None,
    flow_run_id: str | None = None,
) -> Iterator[None]:
    """Keep `run.json` and `run.log` of what happens inside, however it ends.

    A retry appends to the log and counts as another attempt. At the end the folder is let go.
    """
    named = parse_folder_name(run_dir.name)
    assert named is not None, "the folder is not of open_run_dir"
    before = read_info(run_dir)
    info = RunInfo(
        id=named.id,
        name=named.name,
        started_at=before.started_at if before else time.time(),
        attempt=before.attempt + 1 if before else 1,
        command=command,
        deployment=deployment,
        flow_run_id=flow_run_id,
        host=platform.node(),
        pid=os.getpid(),
        process_started_at=process_started_at(),
    )
    info.save(run_dir)
    # At the start, since the files may be another commit's at the end; in a thread, since git and
    # the packages' versions take 13 ms that the startup does not have to wait for.
    facts = Background(lambda: _with_facts(run_dir, info), "run-record")
    state: Ended = "completed"
    error: str | None = None
    with _logged_to(run_dir / RUN_LOG) as handler:
        try:
            yield
        except BaseException as raised:
            state = how_it_ended(raised)
            error = f"{type(raised).__name__}: {raised}" if str(raised) else type(raised).__name__
            # To the file alone: elsewhere, whoever called says it in their own way.
            handler.handle(
                log.makeRecord(log.name, logging.ERROR, "", 0, state, (), sys.exc_info())
            )
            raise
        finally:
            _end(run_dir, facts, state, error)
            let_go(run_dir / LOCK)


def how_it_ended(error: BaseException) -> Ended:
    """Whether what was raised is a fault, or somebody's wish to stop."""
    # Ctrl-C, SystemExit and what Prefect turns a SIGTERM into are no `Exception`.
    is_fault = isinstance(error, Exception) and not isinstance(error, Interrupted)
    return "failed" if is_fault else "stopped"


def _end(run_dir: Path, facts: Background[RunInfo], state: Ended, error: str | None) -> None:
    """What a run came to does not change because its record cannot be written."""
    try:
        info = facts.result()
        end = {"state": state, "error": error, "ended_at": time.time()}
        machine = {**info.machine, "GPU": _gpu_name()}
        info.model_copy(update={**end, "machine": machine}).save(run_dir)
    except OSError as fault:
        log.warning("%s could not be written: %s", run_dir / RUN_JSON, fault)


def _with_facts(run_dir: Path, info: RunInfo) -> RunInfo:
    from ups.telemetry import machine

    facts = {
        "commit": machine.commit(),
        "versions": machine.versions(),
        "machine": machine.host(run_dir),
    }
    info = info.model_copy(update=facts)
    info.save(run_dir)
    return info


def _gpu_name() -> str:
    """What torch says; a run that ended before torch was there does not import it for this."""
    if "torch" not in sys.modules:
        return "not looked for"
    from ups.telemetry import machine

    return machine.gpu_name() or "none"


@contextmanager
def _logged_to(path: Path) -> Iterator[logging.Handler]:
    """The lines of the logger `ups` also into a file, those of INFO at least."""
    logger = logging.getLogger("ups")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    level = logger.level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
