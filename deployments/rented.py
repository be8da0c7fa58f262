"""The job on a rented machine: a worker, the deployment triggered, the run followed to its end.

    python -m deployments.rented --parameters JSON --state DIR --since TIME --mount DIR [--keep]

The script of `ups vast launch` runs this in its clone (`ups/vast/provision.sh`). The worker serves
a work queue of this machine's own, one run at a time: what is triggered here runs here. `DIR/beat`
is written whenever the run gets on; the script's watchdog stops a machine on which that ceases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from deployments import prefect_api as api
from deployments.follow import POLL_S, SETTLE_S, TERMINAL, RunLines
from deployments.layout import WORKER_ENV
from deployments.processes import Processes
from ups import PROJECT_DIR
from ups.cli.runs import show_breakdown
from ups.errors import UpsError
from ups.pipeline.provision import note
from ups.runs.folder import CHECKPOINTS
from ups.runs.index import breakdown_of
from ups.runs.metrics import METRICS
from ups.runs.record import RUN_LOG

POOL, DEPLOYMENT = "gpu", "train-burgers/rented"
POOL_TEXT = "Machines with a GPU: `prefect worker start --pool gpu` on each."
READY_TIMEOUT_S = 180.0
ASK_S = 0.1
LOOK_S = 10.0
STOP_S = 10.0
PATIENCE_S = 60.0
OF_A_RUN = (RUN_LOG, METRICS, CHECKPOINTS)  # in its folder, while it works
T = TypeVar("T")


class RentedError(UpsError):
    """Raised when the server cannot be used, or a process of the job ended before its time."""


class Stopped(BaseException):
    """Raised by SIGTERM: the watchdog is about to stop the machine. No handler may swallow it."""


@dataclass(slots=True)
class Heartbeat:
    """Writes `path` when the run gets on: by what the server tells, or by what lies on the disk.

    A tracker beside the run writes into its folder too, whether or not the run gets on. So of that
    folder nothing counts but what the run's own process writes while it works.

    Attributes:
        stores: data and cache; whatever is written there counts.
        runs: the folder of the runs' folders.
    """

    path: Path
    stores: tuple[Path, ...]
    runs: Path
    newest: float = 0.0
    looked_at: float = field(default_factory=time.monotonic)

    def beat(self) -> None:
        """Tell the watchdog that the run gets on."""
        self.path.write_text(str(time.time()))

    def look(self) -> None:
        """Beat if a file is newer than all were at the last look."""
        if time.monotonic() - self.looked_at < LOOK_S:
            return
        self.looked_at = time.monotonic()
        of_runs = (path for name in OF_A_RUN for path in self.runs.glob(f"*/{name}"))
        newest = max(_newest(path) for path in (*self.stores, *of_runs))
        if newest > self.newest:
            self.newest = newest
            self.beat()


@dataclass
class Job:
    """Triggers the deployment for a worker of its own, and follows the run to its end.

    Attributes:
        state: the script's folder for this start of the machine.
        installed_at: Unix time in seconds at which the install was done.
        mount: where data, cache, runs and logs lie.
        keep: serve the pool's other runs too, and go on doing so after this one.
    """

    parameters: dict[str, Any]
    state: Path
    installed_at: float
    mount: Path
    keep: bool
    run_id: str | None = None

    @cached_property
    def name(self) -> str:
        """Of the worker and of its queue."""
        return f"rented-{os.environ.get('CONTAINER_ID') or platform.node()}"

    @property
    def _warm_socket(self) -> Path:
        """Where a process that is ready to run waits for one."""
        return self.state / "warm.sock"

    @cached_property
    def processes(self) -> Processes:
        return Processes(self.state / "processes", self.mount / "logs")

    @cached_property
    def client(self) -> httpx.Client:
        url = os.environ.get("PREFECT_API_URL")
        if not url:
            raise RentedError(
                "PREFECT_API_URL is not set: send it with `ups vast setup-env` and launch again, "
                "or give `ups vast launch --api-url`"
            )
        return httpx.Client(base_url=url, headers=api.authorization(os.environ), timeout=10)

    def run(self) -> bool:
        """Whether the run was completed."""
        try:
            # It imports while the server is asked, and begins when released.
            self.processes.start_gated("worker", "worker", *self.worker_arguments(), env=_env())
            self._wait_for_server()
            self._wait_until_ready(self._prepare())
            self.run_id = self._trigger()
            ended = self._follow(self.run_id)
            while self.keep and self.processes.running("worker"):
                time.sleep(POLL_S)
            return ended == "COMPLETED"
        except BaseException as error:  # also the watchdog's signal
            self._end_run(error)
            raise
        finally:
            self.processes.stop("worker", STOP_S)
            self.processes.stop("deploy", STOP_S)

    def worker_arguments(self) -> list[str]:
        """What `deployments.worker` gets: one run at a time, of this machine's queue."""
        arguments = [POOL, "--name", self.name, "--limit", "1"]
        arguments += ["--warm-socket", str(self._warm_socket), "--queue", self.name]
        return [*arguments, "--queue", "default"] if self.keep else arguments

    def _wait_for_server(self) -> None:
        """Without an end: that is the watchdog's, and a tunnel may come late."""
        address = urlsplit(str(self.client.base_url)).netloc.rpartition("@")[2]
        shown = ""
        while True:
            try:
                answer = self.client.get(f"/work_pools/{POOL}")
            except httpx.HTTPError as error:
                fault = repr(error)
            else:
                if answer.status_code in (401, 403):
                    raise RentedError(
                        f"the Prefect server at {address} refuses the login "
                        f"({answer.status_code}): send PREFECT_API_KEY or PREFECT_API_AUTH_STRING "
                        "with `ups vast setup-env`"
                    )
                if answer.status_code in (200, 404):
                    return
                fault = f"HTTP {answer.status_code}"
            if fault != shown:
                say(f"waiting for the Prefect server at {address}: {fault}")
                shown = fault
            time.sleep(POLL_S)

    def _prepare(self) -> dict[str, float]:
        """Release the worker, and deploy where that is needed; phase under way → its start."""
        pending = {"worker": self.installed_at}
        patiently(lambda: api.create_pool(self.client, POOL, POOL_TEXT))
        patiently(lambda: api.create_queue(self.client, POOL, self.name))
        patiently(lambda: api.forget_worker(self.client, POOL, self.name))
        self.processes.release("worker")
        if patiently(lambda: api.find_deployment(self.client, DEPLOYMENT)) is None:
            say(f"the server has no {DEPLOYMENT}: deploying it")
            command = ["prefect", "--no-prompt", "deploy", "--name", DEPLOYMENT.partition("/")[2]]
            pending["deploy"] = time.time()
            self.processes.start_gated("deploy", *command, env=_env())
            self.processes.release("deploy")
        return pending

    def _wait_until_ready(self, pending: dict[str, float]) -> None:
        """For the worker and, at the same time, for `prefect deploy`; each is a phase."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        online = False
        while pending:
            if "deploy" in pending and (code := self.processes.exit_code("deploy")) is not None:
                if code:
                    raise self._fault("deploy", f"`prefect deploy` ended with exit code {code}")
                self._note("deploy", pending.pop("deploy"))
            if not self.processes.running("worker"):
                raise self._fault("worker", "the worker ended while it was starting")
            with contextlib.suppress(httpx.HTTPError):  # ask again
                online = online or api.worker_is_online(self.client, POOL, name=self.name)
            if "worker" in pending and online and self._warm_socket.exists():
                self._note("worker", pending.pop("worker"))
            if time.monotonic() > deadline:
                late = f"the worker is not ready after {READY_TIMEOUT_S:.0f} s"
                raise self._fault("worker", late)
            time.sleep(ASK_S)

    def _note(self, phase: str, started_at: float) -> None:
        note(Path(os.environ["UPS_PROVISION"]), phase, started_at, time.time())

    def _trigger(self) -> str:
        found = patiently(lambda: api.find_deployment(self.client, DEPLOYMENT))
        assert found is not None, "it was there, or has been deployed"
        key = f"{self.name} {self.installed_at}"
        run_id = patiently(
            lambda: api.create_run(self.client, found, self.parameters, self.name, key)
        )
        say(f"run {run_id} of {DEPLOYMENT} is triggered")
        return run_id

    def _follow(self, run_id: str) -> str:
        """Print what the run does, and note that it gets on; returns the type of its last state."""
        heart = Heartbeat(self.state / "beat", self._stores, self._runs_dir)
        lines: RunLines | None = None
        lost = False
        while True:
            try:
                run = api.read_run(self.client, run_id)
                lines = lines or RunLines(datetime.fromisoformat(run["expected_start_time"]))
                if ended := run["state"]["type"] in TERMINAL:
                    time.sleep(SETTLE_S)
                for line in lines.read(self.client, run):
                    print(line, flush=True)
                    heart.beat()
                lost = False
                if ended:
                    return self._show_end(run)
            except httpx.HTTPError as error:
                if not lost:
                    say(f"the Prefect server does not answer ({error!r}): asking again")
                lost = True
            heart.look()
            if not self.processes.running("worker"):
                raise self._fault("worker", "the worker ended before the run")
            time.sleep(POLL_S)

    @property
    def _stores(self) -> tuple[Path, ...]:
        """The folders of data and cache, neither inside the other."""
        data = self.mount / "data"
        cache = self._override("training.latent_cache_dir", data / "latent_cache")
        return (data,) if cache.is_relative_to(data) else (data, cache)

    @property
    def _runs_dir(self) -> Path:
        return self._override("runs_dir", Path("runs"))

    def _override(self, key: str, otherwise: Path) -> Path:
        """A folder as the run knows it, which works in the clone."""
        return PROJECT_DIR / self.parameters.get("overrides", {}).get(key, otherwise)

    def _show_end(self, run: dict[str, Any]) -> str:
        if found := breakdown_of(self._runs_dir, UUID(run["id"])):
            show_breakdown(found)
        state = run["state"]
        message = f": {state['message']}" if state["message"] else ""
        say(f"the run ended {state['name']}{message}")
        return str(state["type"])

    def _end_run(self, error: BaseException) -> None:
        """A run that is left behind would stay Running on the server for ever."""
        if self.run_id is None:
            return
        with contextlib.suppress(OSError):
            why = (self.state / "why").read_text().strip()
            error = RentedError(f"the machine is stopped: {why}")
        with contextlib.suppress(httpx.HTTPError):
            if api.read_run(self.client, self.run_id)["state"]["type"] not in TERMINAL:
                api.crash_run(self.client, self.run_id, str(error) or type(error).__name__)

    def _fault(self, log: str, what: str) -> RentedError:
        tail = self.processes.log_tail(log)
        return RentedError(f"{what}. The end of {self.processes.log_path(log)}:\n{tail}")


def patiently(ask: Callable[[], T]) -> T:
    """Ask again where the server is busy or away for a moment.

    Raises:
        RentedError: it refuses, or is away for longer.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise RentedError(
                    f"the Prefect server refuses {error.request.method} {error.request.url.path}: "
                    f"HTTP {error.response.status_code}: {error.response.text}"
                ) from None
            if time.monotonic() > deadline:
                raise RentedError(f"the Prefect server does not answer: {error!r}") from None
        time.sleep(POLL_S)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} job: {text}", flush=True)


def _env() -> dict[str, str]:
    # Bare deployment names are for people; the plug-in would cost each run 0.3 s.
    fixed = {"PREFECT_PLUGINS_ENABLED": "false", "PYTHONUNBUFFERED": "1"}
    return {**WORKER_ENV, **os.environ, **fixed}


def _newest(path: Path) -> float:
    """The latest modification time of a file, or in a folder, in seconds; 0 where none is."""
    if path.is_file():
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    newest = 0.0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    return newest


def _stop(*_: object) -> None:
    raise Stopped("SIGTERM")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the deployment on this machine.")
    parser.add_argument("--parameters", type=json.loads, required=True, help="of the flow, as JSON")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--since", type=float, required=True, dest="installed_at")
    parser.add_argument("--mount", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="go on serving the pool afterwards")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(0 if Job(**vars(given)).run() else 1)
    except UpsError as error:
        sys.exit(f"error: {error}")
    except Stopped:
        sys.exit(143)


if __name__ == "__main__":
    main()
