"""The folder of a run: `runs/<date>-<name>-<id>/` with config, record, log, metrics, checkpoints.

`run.json` says what the run is and how it ended, `run.log` holds the library's log lines;
`ups.runs_index` reads the folders.
"""

from __future__ import annotations

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

from pydantic import Field, ValidationError

from ups.background import Background
from ups.config import Model, RunConfig, dump_config
from ups.errors import ConfigError, Interrupted
from ups.files import write_atomically
from ups.telemetry.process import process_started_at

log = logging.getLogger(__name__)

CONFIG, RUN_JSON, RUN_LOG = "config.yaml", "run.json", "run.log"
CHECKPOINTS, LAST, BEST = "checkpoints", "last.pt", "best.pt"
STAMP = "%Y%m%d-%H%M%S"
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


def open_run_dir(config: RunConfig, run_id: str) -> Path:
    """The folder of this run; the same one when a run is retried.

    Raises:
        ConfigError: the id cannot be the last part of a folder's name.
    """
    check_id(run_id)
    existing = sorted(config.runs_dir.glob(f"*-{run_id}"))
    stamp = time.strftime(STAMP)
    run_dir = existing[0] if existing else config.runs_dir / f"{stamp}-{config.name}-{run_id}"
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG, dump_config(config).encode(), durable=False)
    return run_dir


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

    A retry appends to the log and counts as another attempt.
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
