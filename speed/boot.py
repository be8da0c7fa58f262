"""Boot: from a run's trigger to its first task run: cold, warm, and with Prefect's defaults.

Beside each stands a flow of one task that does nothing, started the same way: what the worker, the
server and Prefect's engine take before any code of ours could.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from deployments import prefect_api as api
from deployments.follow import TERMINAL
from deployments.layout import BIN_DIR, Stack
from speed import inputs
from speed.harness import Comparison, Contender, Sample, alternate, ours_first
from speed.link import LOOPBACK
from speed.measure import run_checked
from speed.settings import Settings
from ups import PROJECT_DIR
from ups.config import RunConfig, dump_config, load_config
from ups.runs.breakdown import Breakdown
from ups.runs.index import breakdown_of

DEPLOYMENT = "train-burgers"
PLAIN = "plain"  # pool and deployment without anything of ours
EMPTY = {"warm": "empty", "cold": "empty-cold"}  # start mode → deployment of the empty flow
RUN_TIMEOUT_S, UPS_TIMEOUT_S = 120, 600
DEFAULTS_REPEATS = 3
POLL_S = 0.3
WARM_ATTEMPTS = 3
BUSY, BUSY_S = 503, 10.0  # SQLite refuses a write beside another one: nothing was created
QUIET_S = 0.5  # between two runs
# The first tasks find no data and fail the run: nothing after the boot is waited for.
NO_DATA, MESSAGE = {"data.sources": None, "features.warm_up": False}, "looked for burgers1d_"
NOTES = [
    "Boot: queue + boot of each run's own breakdown, from the run's creation over the API to the "
    "start of its first task run, which finds no data and ends the run; on a stack of its own, one "
    "run at a time.",
    "Prefect's defaults: its own worker (polls every 10 s) on a pool of its own, the same flow "
    f"without a command or an event; {DEFAULTS_REPEATS} repeats, as each takes a poll. Where in "
    "the poll's interval the run comes is left to chance.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    folder = settings.folder / "boot"
    config = load_config("smoke", {**NO_DATA, **inputs.run_places(inputs.empty(folder))})
    with live_stack(folder, config, ends=MESSAGE) as live:
        live.add_empty_deployments()
        ways = {"ours, warm": lambda: live.boot("warm"), "ours, cold": lambda: live.boot("cold")}
        contenders = ours_first(ways, _pause)
        for mode in EMPTY:
            bound = partial(live.boot_empty, mode)
            contenders.append(Contender(f"an empty flow, {mode}", "bound", bound, _pause))
        results = alternate(contenders, settings.repeats, warm_ups=0)
        with _plain_worker(live):
            plain = Contender("Prefect's defaults", "peer", lambda: live.boot("plain"), _pause)
            results += alternate([plain], min(DEFAULTS_REPEATS, settings.repeats), warm_ups=0)
        yield Comparison(
            phase="trigger → first task run",
            results=results,
            notes=[
                *NOTES,
                "Asked for on an idle machine: warm at most 1 s, cold at most 2 s.",
                f"Warm starts that came out cold and were done again: {live.cold_instead}.",
            ],
        )


@dataclass(slots=True)
class LiveStack:
    """The benchmark's own stack: triggers runs and reads what they say about themselves.

    Attributes:
        ends: what a run says that is to fail; None: runs are to complete.
        cold_instead: number of starts that were to be warm.
    """

    folder: Path
    config: Path
    stack: Stack
    client: httpx.Client
    ends: str | None
    cold_instead: int = 0

    def boot(self, mode: str) -> Sample:
        """Run once; queue and boot in seconds."""
        seconds = {row.phase: row.seconds for row in self.run_once(mode).phases}
        phases = {f"{phase} s": seconds[phase] for phase in ("queue", "boot")}
        return Sample(sum(phases.values()), phases)

    def boot_empty(self, mode: str) -> Sample:
        """Run the empty flow once; from its creation to the start of its task, in seconds."""
        found = self._json("GET", f"/deployments/name/empty/{EMPTY[mode]}")
        run = self._json("POST", f"/deployments/{found['id']}/create_flow_run", {})
        _wait(lambda: self._has_completed(run["id"]), RUN_TIMEOUT_S, "the empty run to end")
        tasks = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        _wait(lambda: self._json("POST", "/task_runs/filter", tasks), RUN_TIMEOUT_S, "its task")
        (task,) = self._json("POST", "/task_runs/filter", tasks)
        begun = datetime.fromisoformat(task["start_time"])
        return Sample((begun - datetime.fromisoformat(run["created"])).total_seconds())

    def run_once(self, mode: str) -> Breakdown:
        """Run to the end; the breakdown. Mode: warm, cold or plain.

        A warm start that comes out cold, because the process kept ready is not (the project's
        files have changed, say), is counted and done again.
        """
        for _ in range(WARM_ATTEMPTS):
            found = self._run(mode)
            if mode != "warm" or found.start_mode == "warm":
                return found
            self.cold_instead += 1
            socket_path = self.stack.folder / "warm.sock"
            _wait(socket_path.exists, RUN_TIMEOUT_S, "the process kept ready")
        raise RuntimeError(f"{WARM_ATTEMPTS} warm starts came out cold")

    def _run(self, mode: str) -> Breakdown:
        name = PLAIN if mode == "plain" else DEPLOYMENT
        found = self._json("GET", f"/deployments/name/train-burgers/{name}")
        body: dict[str, Any] = {"parameters": {"config": str(self.config)}}
        if mode != "plain":
            body["job_variables"] = {"env": {"UPS_START_MODE": mode}}
        run_id = self._json("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"]
        _wait(lambda: self._is_over(run_id), RUN_TIMEOUT_S, "the run to end")
        written = breakdown_of(self.folder / "runs", UUID(run_id))
        if written is None:
            raise RuntimeError(f"the run {run_id} has left no breakdown in its folder")
        return written

    def _is_over(self, run_id: str) -> bool:
        state = api.read_run(self.client, run_id)["state"]
        if state["type"] not in TERMINAL:
            return False
        wanted = "FAILED" if self.ends else "COMPLETED"
        if state["type"] != wanted or (self.ends or "") not in (state["message"] or ""):
            raise RuntimeError(f"the run ended {state['name']}: {state['message']}")
        return True

    def _has_completed(self, run_id: str) -> bool:
        state = api.read_run(self.client, run_id)["state"]
        if state["type"] in TERMINAL and state["type"] != "COMPLETED":
            raise RuntimeError(f"the empty run ended {state['name']}: {state['message']}")
        return bool(state["type"] == "COMPLETED")

    def add_empty_deployments(self) -> None:
        """The empty flow on our pool: by our command, and by one with Prefect's imports alone."""
        ours = self._json("GET", f"/deployments/name/train-burgers/{DEPLOYMENT}")
        flow_id = self._json("POST", "/flows/", {"name": "empty"})["id"]
        commands = {"warm": ours["job_variables"]["command"], "cold": "python -m prefect.engine"}
        for mode, name in EMPTY.items():
            record = {
                "name": name,
                "flow_id": flow_id,
                "entrypoint": "speed/empty_flow.py:empty",
                "pull_steps": ours["pull_steps"],
                "work_pool_name": ours["work_pool_name"],
                "job_variables": {**ours["job_variables"], "command": commands[mode]},
            }
            self._json("POST", "/deployments/", record)

    def add_plain_deployment(self) -> None:
        """The same flow in a pool for Prefect's own worker, without a command of ours."""
        api.create_pool(self.client, PLAIN, "Prefect's own worker, for the benchmark")
        ours = self._json("GET", f"/deployments/name/train-burgers/{DEPLOYMENT}")
        shared = ("flow_id", "entrypoint", "path", "pull_steps", "parameters")
        record = {key: ours[key] for key in shared if ours.get(key) is not None}
        record |= {"name": PLAIN, "work_pool_name": PLAIN}
        record["job_variables"] = {"working_dir": str(PROJECT_DIR)}
        self._json("POST", "/deployments/", record)

    def _json(self, method: str, path: str, body: object = None) -> Any:
        deadline = time.monotonic() + BUSY_S
        while True:
            answer = self.client.request(method, path, json=body)
            if answer.status_code != BUSY or time.monotonic() > deadline:
                return answer.raise_for_status().json()
            time.sleep(POLL_S)


@contextlib.contextmanager
def live_stack(folder: Path, config: RunConfig, ends: str | None = None) -> Iterator[LiveStack]:
    """A stack in a folder, to run this config on; stopped at the end."""
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    stack = Stack(folder / ".stack", LOOPBACK, *_free_ports(2))
    places = {
        "UPS_STACK_DIR": str(stack.folder),
        "UPS_HOST": stack.host,
        "UPS_PREFECT_PORT": str(stack.prefect_port),
        "UPS_S3_PORT": str(stack.s3_port),
    }

    def ups(command: str) -> None:
        words = [sys.executable, "-m", "deployments.cli.app", command]
        run_checked(words, UPS_TIMEOUT_S, cwd=PROJECT_DIR, env={**os.environ, **places})

    try:
        ups("up")
        with stack.client(timeout_s=30) as client:
            yield LiveStack(folder, path, stack, client, ends)
    finally:
        ups("down")


@contextlib.contextmanager
def _plain_worker(live: LiveStack) -> Iterator[None]:
    """`prefect worker start` with Prefect's own settings."""
    live.add_plain_deployment()
    env = live.stack.prefect_env() | live.stack.store_env()
    for name in ("PREFECT_WORKER_QUERY_SECONDS", "PREFECT_WORKER_PREFETCH_SECONDS"):
        env.pop(name, None)
    command = [str(BIN_DIR / "prefect"), "worker", "start", "--pool", PLAIN]
    processes = live.stack.processes
    processes.start(PLAIN, command, env=env, cwd=PROJECT_DIR)
    try:
        online = partial(api.other_workers, live.client, PLAIN)
        _wait(online, 60, "Prefect's worker to come online")
        yield
    finally:
        processes.stop(PLAIN, 20)


def _wait(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(POLL_S)


def _pause() -> None:
    """The run before leaves its last states with the server, and its slot."""
    time.sleep(QUIET_S)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]
