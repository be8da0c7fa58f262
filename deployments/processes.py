"""Start and stop processes that outlive the command that started them.

Each one is recorded in a small file as soon as it exists, with its process id and its creation
time: a process id alone may by now belong to a stranger, who must not be stopped. Each runs in
its own session, so that Ctrl-C in the terminal does not reach it, and writes to a log file.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from ups import PROJECT_DIR
from ups.files import read_json, write_json
from ups.machine.processes import DeferredSignals, is_running, process_started_at

TAIL_LINES = 15
COMM = Path("/proc/self/comm")  # the name that `ps` shows, which goes with the process
ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Record:
    """What a later command needs to find a process again; `created` is a Unix time in seconds."""

    name: str
    pid: int
    created: float
    log: str

    def process(self) -> psutil.Process | None:
        """The process while it lives; None if it ended or its id belongs to another one now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid) if is_running(self.pid, self.created) else None
        return None


def say_ending() -> None:
    """Have other processes see that this one is on its way out, though it still runs."""
    COMM.write_text(ENDING)


class Processes:
    """The processes recorded in a folder: `<name>.json` here, `<name>.log` in `log_dir`."""

    def __init__(self, folder: Path, log_dir: Path) -> None:
        self.folder = folder
        self.log_dir = log_dir
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        gated: bool = False,
    ) -> Record:
        """Start and record it; a gated one waits for `release` (see `deployments.gate`)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Signals wait until what was started is also recorded. While they have handlers, a child
        # starts with the default ones, even where the shell made us ignore Ctrl-C (`ups up &` in
        # a script): Prefect's worker could not be stopped otherwise.
        with DeferredSignals(), self.open_log(name) as log:
            child = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE if gated else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._children[name] = child
            record = Record(name, child.pid, process_started_at(child.pid), log.name)
            write_json(self._path(name), asdict(record))
        return record

    def start_gated(self, name: str, *arguments: str, env: Mapping[str, str]) -> None:
        """Start `python -m deployments.gate` with these arguments, which waits for `release`."""
        command = [sys.executable, "-m", "deployments.gate", *arguments]
        self.start(name, command, env=env, cwd=PROJECT_DIR, gated=True)

    def release(self, name: str) -> None:
        """Let a gated process begin."""
        stdin = self._children[name].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError), stdin:  # it died: whoever waits for it will see
            stdin.write(b"go\n")

    def exit_code(self, name: str) -> int | None:
        """The exit code of a process that this object started; None while it runs."""
        return self._children[name].poll()

    def record(self, name: str) -> Record | None:
        """What was recorded of it; None if nothing was, or it was stopped."""
        try:
            return Record(**read_json(self._path(name)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def running(self, name: str) -> psutil.Process | None:
        """The process of that name while it runs, whichever command started it."""
        record = self.record(name)
        return record.process() if record else None

    def is_ending(self, name: str) -> bool:
        """Whether the process of that name runs, but has said that it will not for long."""
        process = self.running(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            return process is not None and process.name() == ENDING
        return True

    def stop(self, name: str, grace_s: float = 15.0) -> str | None:
        """Stop it and its children: SIGTERM, up to `grace_s` of patience, SIGKILL.

        Returns:
            "stopped" or "killed"; None if it was not running.
        """
        process = self.running(name)
        child = self._children.pop(name, None)
        if child and not process and child.poll() is None:  # ours, though its record is gone
            process = psutil.Process(child.pid)
        outcome = _stop_family(process, grace_s) if process else None
        if child:
            child.wait()
            if child.stdin:
                child.stdin.close()
        self._path(name).unlink(missing_ok=True)
        return outcome

    def log_path(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"

    def open_log(self, name: str) -> Any:
        """A new log file; the one before it stays as `<name>.log.1`."""
        path = self.log_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        return path.open("wb")

    def log_tail(self, name: str) -> str:
        """The last lines of its log, without empty ones."""
        try:
            lines = self.log_path(name).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _stop_family(process: psutil.Process, grace_s: float) -> str:
    """Stop a process, then those of its children that did not end with it."""
    children = _children(process)
    _signal([process], signal.SIGTERM)
    alive = psutil.wait_procs([process], timeout=grace_s)[1]
    children = list({*children, *_children(process)})
    _signal(children, signal.SIGTERM)
    left = psutil.wait_procs(children, timeout=min(grace_s, 5.0))[1]
    _signal([*alive, *left], signal.SIGKILL)
    psutil.wait_procs([*alive, *left], timeout=5.0)
    return "killed" if alive else "stopped"


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil also refuses a reused id
            process.send_signal(number)
