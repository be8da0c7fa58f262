"""`run.json` and `run.log` of a run's folder: what the run is, what it said, and how it ended."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ups.background import Background
from ups.errors import Interrupted
from ups.machine.processes import process_started_at
from ups.runs.folder import let_go, parse_folder_name
from ups.runs.stored import Ended, RunInfo

log = logging.getLogger(__name__)

RUN_LOG = "run.log"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def recorded(
    run_dir: Path,
    *,
    command: str | None = None,
    deployment: str | None = None,
    flow_run_id: str | None = None,
    changed: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Write `run.json` and `run.log` of what happens inside, however it ends.

    A retry appends to the log and counts as another attempt. At the end the folder is let go.
    """
    try:
        with _recorded(run_dir, command, deployment, flow_run_id, changed or {}):
            yield
    finally:
        let_go(run_dir)


@contextmanager
def _recorded(
    run_dir: Path,
    command: str | None,
    deployment: str | None,
    flow_run_id: str | None,
    changed: Mapping[str, Any],
) -> Iterator[None]:
    named = parse_folder_name(run_dir.name)
    assert named is not None, "the folder is not of open_run_dir"
    before = RunInfo.load(run_dir)
    info = RunInfo(
        id=named.id,
        name=named.name,
        changed=dict(changed),
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
        except BaseException as raised:  # Ctrl-C and a cancel are ends, too; raised again
            state = how_it_ended(raised)
            error = describe_error(raised)
            # Only to the file: elsewhere, whoever called says it in their own way.
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


def describe_error(error: BaseException) -> str:
    """An error's kind and, where it has one, its message."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _end(run_dir: Path, facts: Background[RunInfo], state: Ended, error: str | None) -> None:
    """Write the end of the record. What a run came to does not change because that fails."""
    try:
        info = facts.result()
        end = {"state": state, "error": error, "ended_at": time.time()}
        machine = {**info.machine, "GPU": _gpu_name()}
        info = info.model_copy(update={**end, "machine": machine})
        try:
            info.save(run_dir)
        except OSError:
            info.save(run_dir, in_place=True)
    except OSError as fault:
        log.warning("%s could not be written: %s", run_dir / RunInfo.FILE, fault)


def _with_facts(run_dir: Path, info: RunInfo) -> RunInfo:
    from ups.machine import host

    facts = {
        "commit": host.commit(),
        "versions": host.versions(),
        "machine": host.describe(run_dir),
    }
    info = info.model_copy(update=facts)
    info.save(run_dir)
    return info


def _gpu_name() -> str:
    """The GPU that torch found; a run that ended without torch does not import it for this."""
    if "torch" not in sys.modules:
        return "not looked for"
    from ups.machine import host

    return host.gpu_name() or "none"


@contextmanager
def _logged_to(path: Path) -> Iterator[logging.Handler]:
    """Write the lines of the logger `ups` also to a file, those of INFO at least."""
    logger = logging.getLogger("ups")
    handler = _RunLog(path, encoding="utf-8")
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
        with suppress(OSError):  # what could not be written before cannot be now
            handler.close()


class _RunLog(logging.FileHandler):
    """Says once that a line could not be written, such as on a full disk, and goes on."""

    is_said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 (logging's own)
        if not self.is_said:
            self.is_said = True
            log.warning("%s lacks lines: %s", self.baseFilename, sys.exc_info()[1])
