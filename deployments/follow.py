"""Trigger a deployment with Prefect's own CLI, and show what its run does while it does it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from deployments import prefect_api as api
from deployments.layout import BIN_DIR, CLIENT_LOGIN, LOGIN, Stack, StackError
from deployments.servers import NO_ANSWER, NamedServer, named_server
from ups import PROJECT_DIR
from ups.config import PROJECT_CONFIGS, find_config

TRAIN, BENCHMARK = "train-burgers/train-burgers", "benchmark-startup/benchmark-startup"
POLL_S = 1.0  # faster polling makes SQLite refuse writes
# States and log records reach the API up to a second after the run has ended.
SETTLE_S = 1.0
SERVER_LOST_S = 60.0
EPOCH = datetime.fromtimestamp(0, UTC)
LATE_LOGS = timedelta(seconds=10)
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
INFO, ERROR = 20, 40
# What Prefect itself logs about states, which the state lines show anyway.
CHATTER = re.compile(
    r"Beginning (flow|subflow) run|Finished in state|Task run failed|Created task run|View at http|"
    r"Encountered exception during execution|Process for flow run|Opening process|"
    r"Worker .* submitting|Completed submission|Downloading flow code|Flow run state|"
    r"Running \d+ deployment pull step|Executing deployment step|Deployment step '|"
    r"All deployment steps completed|Engine execution exited"
)
CHATTY_LOGGERS = ("prefect.flow_runs.worker", "prefect.flow_runs.runner", "prefect.worker")


class RunTimeout(StackError):
    """Raised when a run that is followed has not ended in the time given; it goes on."""


@dataclass(slots=True)
class RunLines:
    """Turns what the API shows, again and again, into lines for what is new."""

    start: datetime
    states: dict[str, str] = field(default_factory=dict)
    seen_logs: set[str] = field(default_factory=set)
    logs_until: datetime = EPOCH

    def read(self, client: httpx.Client, run: dict[str, Any]) -> list[str]:
        """Ask for states and logs, and return a line for each that is new, by their times."""
        events = self._new_state(run["id"], "flow run", run)
        for task in api.task_runs(client, run["id"]):
            events += self._new_state(task["id"], task["name"], task)
        after = self.logs_until - LATE_LOGS if self.seen_logs else self.logs_until
        for log in api.logs(client, run["id"], after):
            events += self._new_log(log)
        events.sort(key=lambda event: event[0])
        return [f"{(at - self.start).total_seconds():7.1f} s  {text}" for at, text in events]

    def _new_state(self, key: str, name: str, run: dict[str, Any]) -> list[tuple[datetime, str]]:
        state = run.get("state")
        if not state or self.states.get(key) == state["name"]:
            return []
        self.states[key] = state["name"]
        seconds = f"{run['total_run_time']:6.1f} s" if state["type"] in TERMINAL else ""
        text = f"{name:<44} {state['name']:<10} {seconds}".rstrip()
        return [(datetime.fromisoformat(state["timestamp"]), text)]

    def _new_log(self, log: dict[str, Any]) -> list[tuple[datetime, str]]:
        at = datetime.fromisoformat(log["timestamp"])
        self.logs_until = max(self.logs_until, at)
        if log["id"] in self.seen_logs:
            return []
        self.seen_logs.add(log["id"])
        if log["level"] < INFO or log["name"].startswith(CHATTY_LOGGERS):
            return []
        if CHATTER.match(log["message"]) or (
            log["name"].startswith("prefect.") and CHATTER.search(log["message"])
        ):
            return []
        mark = "! " if log["level"] >= ERROR else "  "
        message = log["message"].partition("\nTraceback (most recent call last):")[0]
        return [(at, mark + line) for line in message.splitlines()]


def as_parameter(config: str) -> str:
    """A config as the flow takes it: a run has another working directory, and no variable."""
    path = find_config(config)
    return config if path.parent == PROJECT_CONFIGS else str(path.resolve())


def trigger(stack: Stack, deployment: str, parameters: Sequence[str]) -> str:
    """`prefect deployment run` with `key=value` parameters; returns the id of the flow run."""
    command = [str(BIN_DIR / "prefect"), "deployment", "run", deployment]
    for parameter in parameters:
        command += ["--param", parameter]
    env = {**stack.prefect_env(), "COLUMNS": "200"}
    done = subprocess.run(command, env=env, cwd=PROJECT_DIR, text=True, capture_output=True)
    found = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
    if done.returncode or not found:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = [line for line in said if not line.startswith("Creating flow run")] or said
        raise StackError(f"`prefect deployment run {deployment}` failed: {' '.join(said)}")
    return found.group(1)


def server_of(stack: Stack, run_id: str) -> Stack | NamedServer:
    """Where a run is: on the stack of this machine or, if it knows none such, at the named server.

    Raises:
        ServerFault: Prefect refuses the settings that name one.
    """
    if stack.processes.running("prefect-server"):
        try:
            with stack.client(timeout_s=10) as client:
                if client.get(f"/flow_runs/{run_id}").status_code not in (404, 422):
                    return stack
        except httpx.HTTPError:  # it is asked again while the run is followed
            return stack
    named = named_server()
    return stack if named is None or named.url == stack.api_url else named


def follow(
    server: Stack | NamedServer,
    run_id: str,
    say: Callable[[str], None],
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Print the run's progress until it ends; returns the flow run as the API shows it.

    Raises:
        StackError: there is no such run, or the server does not answer any more.
        RunTimeout: it goes on after `timeout_s`.
    """
    begin = answered = time.monotonic()
    with server.client(timeout_s=10) as client:
        lines: RunLines | None = None
        while True:
            try:
                run = api.read_run(client, run_id)
                lines = lines or RunLines(datetime.fromisoformat(run["expected_start_time"]))
                if ended := run["state"]["type"] in TERMINAL:
                    time.sleep(SETTLE_S)
                for line in lines.read(client, run):
                    say(line)
                if ended:
                    return run
                answered = time.monotonic()
            except httpx.HTTPError as error:
                _check_error(server, run_id, error, time.monotonic() - answered)
            if timeout_s is not None and time.monotonic() - begin > timeout_s:
                raise RunTimeout(f"the run did not end in {timeout_s:.0f} s")
            time.sleep(POLL_S)


def run_url(server: Stack | NamedServer, run_id: str) -> str:
    """The page of a flow run in the UI."""
    return f"{server.ui_url}/runs/flow-run/{run_id}"


def _check_error(
    server: Stack | NamedServer, run_id: str, error: httpx.HTTPError, silent_s: float
) -> None:
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
    where = server.ui_url if isinstance(server, Stack) else server.shown
    if status in (404, 422):
        raise StackError(f"no flow run {run_id} on {where}") from None
    if status in (401, 403):
        is_ours = isinstance(server, Stack)
        login = (
            f"{LOGIN} to the one that it was started with"
            if is_ours
            else f"{CLIENT_LOGIN} or PREFECT_API_KEY"
        )
        raise StackError(
            f"the Prefect server at {where} wants another login (HTTP {status}): set {login}"
        ) from None
    if isinstance(server, Stack):
        is_gone = not server.processes.running("prefect-server")
        remedy = f"`ups up` starts it again, then `ups follow {run_id}`"
    else:
        is_gone, remedy = False, NO_ANSWER
    if is_gone or silent_s > SERVER_LOST_S:
        raise StackError(
            f"the Prefect server at {where} does not answer ({error!r}): {remedy}"
        ) from None
