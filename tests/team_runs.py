"""200 queued runs on a team's server with ten workers; no part of the tests.

    .venv/bin/python -m tests.team_runs
    .venv/bin/python -m tests.team_runs --runs 40 --workers 4

Two Prefect servers, their services, PostgreSQL and Redis are started with a login, and half of the
workers talk to each server. Each worker takes one run at a time, as one that has a GPU; on this one
machine they share the process that is kept ready. All runs are created at once, in turn at both
servers. They are of a light flow (`tests/team_flow.py`), deployed and started as training is: warm,
through `deployments/start.py`, with three task runs, fifteen lines of log and an artifact.

Exit code 1 if a run did not complete, began twice or was lost, or if a server refused a request
(a status above 399) for another reason than those that are listed with the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from deployments import prefect_api as api
from deployments.layout import PROJECT_DIR
from tests.live import wait_until
from tests.team import FLOW, NUM_TASKS, POOL, Team, deploy_light, missing, serving_team

AT_ONCE = 20  # that create runs
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PAGE = 200  # of what the API lists in one answer
READY_S, END_S, ARRIVED_S = 300.0, 1500.0, 60.0
# Of the servers' access logs: `127.0.0.1:4 - "GET /api/x HTTP/1.1" 200`.
ANSWER = re.compile(r'"((?:GET|POST|PATCH|PUT|DELETE) [^ ?]+)[^"]*" (\d{3})')
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Answers above 399 that are no fault.
EXPECTED = {
    "422 GET /api/csrf-token": "each of Prefect's clients asks once; the servers want no token",
    f"404 GET /api/work_pools/{POOL}": "whether the pool is there, before it is made",
}


def start_workers(team: Team, count: int, folder: Path) -> list[str]:
    """Start them in turn at both servers, and wait until all are online; returns their names."""
    socket, names = folder / "warm.sock", [f"worker-{number}" for number in range(count)]
    for number, name in enumerate(names):
        arguments = [POOL, "--name", name, "--limit", "1"]
        arguments += [] if number else ["--warm-socket", str(socket)]
        env = {**team.client_env(number % len(team.urls)), "UPS_WARM_SOCKET": str(socket)}
        env["PREFECT_HOME"] = str(folder / "home")
        command = [sys.executable, "-m", "deployments.worker", *arguments]
        team.processes.start(name, command, env=env, cwd=PROJECT_DIR)
    with team.client() as client:
        wait_until(lambda: set(names) <= set(api.online_workers(client, POOL)), READY_S, 0.5)
    wait_until(socket.exists, READY_S)
    return names


def create_runs(team: Team, deployment: str, count: int, folder: Path) -> list[str]:
    """Create them at both servers, several at a time; returns their ids."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(team.client(n)) for n in range(len(team.urls))]
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))

        def create(number: int) -> str:
            parameters = {"number": number, "folder": str(folder)}
            return api.create_run(clients[number % len(clients)], deployment, parameters)

        return list(pool.map(create, range(count)))


def read_runs(client: httpx.Client, deployment: str) -> list[dict[str, Any]]:
    """All flow runs of the deployment."""
    found: list[dict[str, Any]] = []
    only = {"deployments": {"id": {"any_": [deployment]}}, "sort": "ID_DESC", "limit": PAGE}
    while True:
        answer = client.post("/flow_runs/filter", json={**only, "offset": len(found)})
        page = answer.raise_for_status().json()
        found += page
        if len(page) < PAGE:
            return found


def wait_for_end(client: httpx.Client, deployment: str, count: int) -> list[dict[str, Any]]:
    """The runs once all have ended, or as they are after a while; a line for each look."""
    began = time.monotonic()
    while True:
        runs = read_runs(client, deployment)
        states = Counter(run["state_type"] for run in runs)
        seconds = time.monotonic() - began
        print(f"  {seconds:5.0f} s  {', '.join(f'{n} {s}' for s, n in states.items())}", flush=True)
        if sum(states[state] for state in ENDED) >= count or seconds > END_S:
            return runs
        time.sleep(5)


def faults(runs: list[dict[str, Any]], ids: list[str], folder: Path) -> Iterator[str]:
    """What is wrong with the runs."""
    by_id = {run["id"]: run for run in runs}
    for lost in set(ids) - by_id.keys():
        yield f"run {lost} is lost"
    for run in runs:
        if run["state_type"] != "COMPLETED":
            yield f"run {run['name']} is {run['state_name']}: {run['state']['message']}"
        if run["run_count"] != 1:
            yield f"run {run['name']} was Running {run['run_count']} times"
    begun = Counter(line.split()[0] for line in (folder / "begun").read_text().splitlines())
    for run_id in by_id.keys() | begun.keys():
        if begun[run_id] != 1:
            yield f"run {run_id} began {begun[run_id]} times"


def left_out(client: httpx.Client, deployment: str, count: int) -> Iterator[str]:
    """What the servers lack of the runs' tasks and artifacts, which reach them by events and calls.

    They arrive up to some seconds after the end of a run.
    """
    of_it = {"deployments": {"id": {"any_": [deployment]}}}
    of_flow = {"flows": {"name": {"any_": [FLOW]}}}
    wanted = {"task_runs": (of_it, count * NUM_TASKS), "artifacts": (of_flow, count)}
    for kind, (which, expected) in wanted.items():

        def found(kind: str = kind, which: dict[str, Any] = which) -> int:
            return int(client.post(f"/{kind}/count", json=which).raise_for_status().json())

        with contextlib.suppress(AssertionError):
            wait_until(lambda e=expected, f=found: f() >= e, ARRIVED_S, 1)
        if (number := found()) != expected:
            yield f"{number} {kind}, expected {expected}"


def answers(team: Team) -> Counter[str]:
    """How often the servers answered what with which status, from their logs."""
    found: Counter[str] = Counter()
    for number in range(len(team.urls)):
        text = team.processes.log_path(f"server-{number}").read_text(errors="replace")
        found.update(f"{status} {ID.sub('…', asked)}" for asked, status in ANSWER.findall(text))
    return found


def seconds_between(run: dict[str, Any], first: str, last: str) -> float:
    return (datetime.fromisoformat(run[last]) - datetime.fromisoformat(run[first])).total_seconds()


def shown(values: list[float]) -> str:
    values = sorted(values)
    return f"median {median(values):.2f}, largest {values[-1]:.2f}"


def show(team: Team, runs: list[dict[str, Any]], took_s: float, folder: Path) -> None:
    """Print the figures."""
    done = [run for run in runs if run["start_time"] and run["end_time"]]
    starts = Counter(line.split()[2] for line in (folder / "begun").read_text().splitlines())
    print(f"{len(done)} runs in {took_s:.0f} s; starts: {dict(starts)}")
    for name, first, last in (
        ("queue", "expected_start_time", "start_time"),
        ("run", "start_time", "end_time"),
    ):
        print(f"{name} s: {shown([seconds_between(run, first, last) for run in done])}")
    found = answers(team)
    statuses: Counter[str] = Counter()
    for answer, number in found.items():
        statuses[answer[:3]] += number
    print(f"answers: {dict(sorted(statuses.items()))}")
    for answer, why in EXPECTED.items():
        print(f"  {found[answer]} × {answer}: {why}")
    used = {name: round(seconds) for name, seconds in team.cpu_seconds().items()}
    print(f"CPU s: {used}; machine: {psutil.cpu_count()} cores")


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=10)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped
    if reason := missing():
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving_team(folder, PREFECT_SERVER_LOGGING_LEVEL="INFO") as team:
            print("two servers answer", flush=True)
            with team.client() as client:
                deployment = deploy_light(client)
                start_workers(team, given.workers, folder)
                print(f"{given.workers} workers are online", flush=True)
                began = time.monotonic()
                ids = create_runs(team, deployment, given.runs, folder)
                print(f"{len(ids)} runs created in {time.monotonic() - began:.1f} s", flush=True)
                runs = wait_for_end(client, deployment, given.runs)
                show(team, runs, time.monotonic() - began, folder)
                wrong = [*faults(runs, ids, folder), *left_out(client, deployment, len(ids))]
            refused = {a: n for a, n in answers(team).items() if a[0] in "45" and a not in EXPECTED}
            wrong += [f"{number} × {answer}" for answer, number in refused.items()]
    whole = (
        "no fault: each run began once and completed, with all of its tasks; nothing was refused"
    )
    print("\n".join(wrong) or whole)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
