"""Trackers of experiments beside a run: Weights & Biases, TensorBoard.

Each works in a process of its own, which reads the run's folder: `metrics.jsonl` while it grows,
and at the run's end the breakdown and the pictures. It starts after the first optimizer step.
So nothing that a tracker does reaches the training or its startup: not its imports (1 to 2 s),
not a network that does not answer, not a crash.
"""

from __future__ import annotations

import contextvars
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ups.config import RunConfig
from ups.runs.record import how_it_ended
from ups.runs.stored import Ended
from ups.tracking.protocol import NOTE

log = logging.getLogger(__name__)

END_S: dict[Ended, float] = {"completed": 30.0, "failed": 30.0, "stopped": 5.0}
READ_S = 1.0  # for the last words of a process that has ended
UNHARMED = "the run is not affected, and metrics.jsonl in its folder has everything"


@contextmanager
def tracked(config: RunConfig, run_dir: Path) -> Iterator[Trackers]:
    """Yield the trackers that the config asks for; at the end they learn how the run ended."""
    trackers = Trackers(config, run_dir)
    ended: Ended = "completed"
    try:
        yield trackers
    except BaseException as error:  # Ctrl-C and a cancel are ends, too; raised again
        ended = how_it_ended(error)
        raise
    finally:
        trackers.end(ended)


class Trackers:
    """Processes that follow a run's folder. Whatever becomes of one is a line in the log."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        wanted = {
            "wandb": config.logging.wandb.enabled,
            "tensorboard": config.logging.tensorboard.enabled,
        }
        self._run_dir = run_dir
        self._names = [name for name, is_wanted in wanted.items() if is_wanted]
        self._processes: list[_Process] | None = None

    def start(self) -> None:
        """Call it once the first step is taken. It takes some milliseconds."""
        if self._processes is None:
            self._processes = []
            for name in self._names:
                try:
                    self._processes.append(_Process(name, self._run_dir))
                except OSError as error:
                    _warn(name, str(error))

    def end(self, ended: Ended) -> None:
        """Have them send what is left, for a limited time.

        A run that ended before its first step is tracked too, unless somebody stopped it.
        """
        if ended != "stopped":
            self.start()
        for process in self._processes or []:
            process.send_end(ended)
        for process in self._processes or []:
            process.wait(END_S[ended])


class _Process:
    """`python -m ups.tracking NAME RUN_DIR`, and a thread that reads what it says.

    Its standard input says how the run ended; without a line, that the run was killed.
    """

    def __init__(self, name: str, run_dir: Path) -> None:
        """Start it, with a run's folder to follow.

        Raises:
            OSError: it cannot be started, or its package is not installed.
        """
        if importlib.util.find_spec(name) is None:
            raise OSError(f"the package {name} is missing: `pip install 'ups-train[{name}]'`")
        self._name, self._is_given_up = name, False
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ups.tracking", name, str(run_dir)],
            # It has no business with the object store.
            env={key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the run, which says how it ended
        )
        # The log of a run by Prefect goes to the run that the thread's context names.
        context = contextvars.copy_context()
        self._reader = threading.Thread(
            target=context.run, args=(self._read,), name=f"{name}-tracker", daemon=True
        )
        self._reader.start()

    def send_end(self, ended: Ended) -> None:
        """Say how the run ended; it sends what is left, and ends."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, which its reader has said
            self._child.stdin.write(f"{ended}\n")
            self._child.stdin.close()

    def wait(self, timeout_s: float) -> None:
        """Give it this long, then kill it, and with it whatever it has started."""
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._is_given_up = True
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            _warn(self._name, f"not done {timeout_s:.0f} s after the run, and ended")
        except BaseException:  # a second Ctrl-C: do not wait any longer
            os.killpg(self._child.pid, signal.SIGKILL)
            raise
        self._reader.join(READ_S)

    def _read(self) -> None:
        assert self._child.stdout is not None
        last = ""
        with self._child.stdout as output:
            for line in output:
                last = line.strip() or last
                if line.startswith(NOTE):
                    log.info("%s: %s", self._name, last.removeprefix(NOTE))
                else:
                    log.debug("%s: %s", self._name, last)
        code = self._child.wait()
        if code and not self._is_given_up:
            _warn(self._name, f"ended with exit code {code}, its last words: {last or 'none'}")


def _warn(name: str, what: str) -> None:
    log.warning("logging.%s: %s; %s", name, what, UNHARMED)
