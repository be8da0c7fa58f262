"""Parts of a team's server die in the middle of a run, and come back; no part of the tests.

    .venv/bin/python -m tests.team_faults
    .venv/bin/python -m tests.team_faults server redis --away-s 100

Two servers, their services, PostgreSQL and Redis, behind the proxy of `nginx.conf`, and a worker as
`ups worker` starts it. At each of the faults below one run of a light flow is in the middle, and
another ends while the part is away. Afterwards a run is triggered, and one is cancelled.

Exit code 1 if a run ended otherwise than it is to, began twice, lacks a task run, a line of log or
an artifact, or was not cancelled soon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import yaml

from deployments import prefect_api as api
from deployments.layout import BIN_DIR, PROJECT_DIR
from tests.live import free_ports, wait_until
from tests.team import NUM_TASKS, POOL, Team, deploy_light, missing, serving_team
from tests.team_flow import NUM_LINES

PROXY = PROJECT_DIR / "deployments" / "team" / "nginx.conf"
LOST_RUNS = PROXY.with_name("lost-runs.yaml")
# How long the two runs that are troubled pause after each task: one ends while the part is away.
PAUSES_S = (8.0, 3.0)
AFTER_S = 5.0  # from their begin to the fault
# The server tells the others of a state before it commits it.
SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON flow_run_state DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.type = 'CANCELLING') EXECUTE FUNCTION slow();
"""
CANCEL_S = 30.0  # until it is done; after 60 s the server would mark the run, which goes on
LOST_S = 90  # of silence until a run is lost; the team's own wait is too long to be waited for
BEGIN_S, END_S, ARRIVED_S, NEXT_S = 120.0, 300.0, 180.0, 120.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Troubled:
    """A team's server with a worker, and what is done to it.

    Attributes:
        url: the API that the worker talks to: the proxy's, else the first server's.
        away_s: how long a part is away.
    """

    def __init__(self, team: Team, folder: Path, away_s: float) -> None:
        self.team, self.folder, self.url = team, folder, team.urls[0]
        self.away_s = away_s
        self.begun = folder / "begun"
        self.begun.touch()
        self.number = itertools.count()

    def start_proxy(self) -> None:
        """One address for both servers, by the team's file with other names and another port."""
        (port,) = free_ports(1)
        text = PROXY.read_text().replace("listen 4200", f"listen 127.0.0.1:{port}")
        for number, url in enumerate(self.team.urls, 1):
            text = text.replace(f"server-{number}:4200", httpx.URL(url).netloc.decode())
        config = self.folder / "nginx.conf"
        config.write_text(
            f"daemon off; pid {self.folder}/nginx.pid; error_log stderr;\n"
            f"events {{}}\nhttp {{ access_log off;\n{text}\n}}\n"
        )
        self.team.commands["proxy"] = ["nginx", "-p", str(self.folder), "-c", str(config)]
        self.team.start("proxy")
        self.url = f"http://127.0.0.1:{port}/api"
        with self.team.client() as client:
            client.base_url = httpx.URL(self.url)
            wait_until(lambda: api.is_ready(client), 30, 0.1)

    def start_worker(self) -> None:
        """Start it where it does not run; it listens then."""
        if self.team.processes.running("worker"):
            return
        home = self.folder / "home"
        env = {**self.team.client_env(0), "PREFECT_API_URL": self.url, "PREFECT_HOME": str(home)}
        env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(LOST_S // 3)
        command = [sys.executable, "-m", "deployments.cli.app", "worker", "--pool", POOL]
        command += ["--name", f"gpu-{next(self.number)}", "--limit", "2"]
        self.team.processes.start("worker", command, env=env, cwd=self.folder)
        log = self.team.processes.log_path("worker")
        for said in ("ready at", "listening for scheduled runs"):
            wait_until(lambda words=said: words in log.read_text(), 120, 0.1)

    def create(self, client: httpx.Client, deployment: str, pause_s: float = 0.0) -> str:
        """Trigger a run; returns its id."""
        parameters = {"number": next(self.number), "folder": str(self.folder), "pause_s": pause_s}
        return api.create_run(client, deployment, parameters)

    def begin(self, client: httpx.Client, deployment: str, pause_s: float) -> str:
        """The same, and wait until it has begun."""
        run_id = self.create(client, deployment, pause_s)
        wait_until(lambda: self.num_begins(run_id), BEGIN_S, 0.1)
        return run_id

    def num_begins(self, run_id: str) -> int:
        """How often a run has begun."""
        return self.begun.read_text().count(run_id)

    def kill(self, *names: str) -> None:
        """SIGKILL to a part and to what it started."""
        for name in names:
            process = self.team.processes.running(name)
            assert process is not None
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()

    def kill_machine(self) -> None:
        """The worker and all that it or its runs started, as if the machine had lost its power."""
        home, found = str(self.folder / "home"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == home:
                    found.append(process)
        for process in found:
            process.suspend()  # none may say how another one ended
        for process in found:
            process.kill()

    def signal_worker(self, number: int) -> None:
        process = self.team.processes.running("worker")
        assert process is not None
        process.send_signal(number)
        wait_until(lambda: not self.team.processes.running("worker"), 60)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, and what is to come of the run."""

    says: str
    strike: Callable[[Troubled], None]
    ends: str = "COMPLETED"


def _server(troubled: Troubled) -> None:
    troubled.kill("server-0")
    time.sleep(troubled.away_s)
    troubled.team.start_server(0)


def _servers(troubled: Troubled) -> None:
    troubled.kill("server-0", "server-1")
    time.sleep(troubled.away_s)
    for number in range(2):
        troubled.team.start_server(number)


def _services(troubled: Troubled) -> None:
    troubled.kill("services")
    time.sleep(troubled.away_s)
    troubled.team.start("services")


def _redis(troubled: Troubled) -> None:
    troubled.kill("redis")
    time.sleep(troubled.away_s)
    troubled.team.start("redis")


def _redis_empty(troubled: Troubled) -> None:
    troubled.kill("redis")
    shutil.rmtree(troubled.team.processes.folder.parent / "appendonlydir")
    time.sleep(troubled.away_s)
    troubled.team.start("redis")


def _postgres(mode: str) -> Callable[[Troubled], None]:
    def strike(troubled: Troubled) -> None:
        troubled.team.postgres.stop(mode)
        time.sleep(troubled.away_s)
        troubled.team.postgres.start()

    return strike


def _slow_commit(troubled: Troubled) -> None:
    async def change() -> None:
        connection = await asyncpg.connect(troubled.team.postgres.url)
        await connection.execute(SLOW_COMMIT)
        await connection.close()

    asyncio.run(change())


def _signal(number: int) -> Callable[[Troubled], None]:
    return lambda troubled: troubled.signal_worker(number)


FAULTS = {
    "server": Fault("kill -9 of a server", _server),
    "servers": Fault("kill -9 of both servers", _servers),
    "services": Fault("kill -9 of the services", _services),
    "redis": Fault("kill -9 of Redis", _redis),
    "redis-empty": Fault("kill -9 of Redis, whose data are lost", _redis_empty),
    "postgres": Fault("PostgreSQL is stopped", _postgres("fast")),
    "postgres-killed": Fault("PostgreSQL crashes", _postgres("immediate")),
    "slow-commit": Fault("half a second to commit a cancel, from now on", _slow_commit),
    "worker-stopped": Fault("SIGTERM to the worker", _signal(signal.SIGTERM), "CRASHED"),
    "worker-killed": Fault("kill -9 of the worker", _signal(signal.SIGKILL), "CRASHED"),
    "machine": Fault("the worker's machine is gone", Troubled.kill_machine, "CRASHED"),
}


def try_out(troubled: Troubled, deployment: str, fault: Fault) -> Iterator[str]:
    """Have two runs meet the fault, then run another and cancel one; yields what is wrong."""
    troubled.start_worker()
    with troubled.team.client(1) as client:
        began = time.monotonic()
        runs = [troubled.begin(client, deployment, pause_s) for pause_s in PAUSES_S]
        time.sleep(max(0.0, AFTER_S - (time.monotonic() - began)))
        struck = time.monotonic()
        fault.strike(troubled)
        for run_id in reversed(runs):  # the shorter one first
            state = wait_for_end(client, run_id)
            said = f"{time.monotonic() - struck:.0f} s after the fault: {state['message']}"
            print(f"  {state['name']} {said}", flush=True)
            if state["type"] != fault.ends:
                yield f"expected {fault.ends}"
            if (num := troubled.num_begins(run_id)) != 1:
                yield f"it began {num} times"
        for run_id in runs if fault.ends == "COMPLETED" else ():
            yield from lacking(client, run_id)
        troubled.start_worker()
        began = time.monotonic()
        run_id = troubled.create(client, deployment)
        state = wait_for_end(client, run_id, NEXT_S)
        print(f"  next: {state['name']} after {time.monotonic() - began:.0f} s", flush=True)
        if state["type"] != "COMPLETED":
            yield f"the next run is {state['name']}: {state['message']}"
        yield from lacking(client, run_id)
        run_id = troubled.begin(client, deployment, END_S)
        began = time.monotonic()
        api.cancel_run(client, run_id, "The fault is over.")
        state = wait_for_end(client, run_id, NEXT_S)
        took_s = time.monotonic() - began
        print(f"  cancel: {state['name']} after {took_s:.0f} s", flush=True)
        if state["type"] != "CANCELLED" or took_s > CANCEL_S:
            yield f"a run that was cancelled is {state['name']} after {took_s:.0f} s"


def wait_for_end(client: httpx.Client, run_id: str, for_s: float = END_S) -> dict[str, Any]:
    """The state of the run once it has ended, or as it is after a while."""
    deadline = time.monotonic() + for_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            state = api.read_run(client, run_id)["state"]
            if state["type"] in ENDED or time.monotonic() > deadline:
                return dict(state)
        time.sleep(0.5)


def lacking(client: httpx.Client, run_id: str) -> Iterator[str]:
    """What the server lacks of a completed run; it may arrive some time after its end."""
    of_run = {"flow_run_id": {"any_": [run_id]}}
    questions = {
        "completed task runs": (
            "/task_runs/count",
            {
                "flow_runs": {"id": {"any_": [run_id]}},
                "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
            },
            NUM_TASKS,
        ),
        "artifacts": ("/artifacts/count", {"artifacts": of_run}, 1),
        "lines of log": (
            "/logs/filter",
            {"logs": {**of_run, "text": {"query": "largest"}}},
            NUM_TASKS * NUM_LINES,
        ),
    }
    for what, (path, body, expected) in questions.items():

        def number(path: str = path, body: dict[str, Any] = body) -> int:
            found = client.post(path, json=body).raise_for_status().json()
            return len(found) if isinstance(found, list) else int(found)

        with contextlib.suppress(AssertionError):
            wait_until(lambda n=number, e=expected: n() == e, ARRIVED_S, 1)
        if (found := number()) != expected:
            yield f"{found} {what}, expected {expected}"


def create_automation(troubled: Troubled) -> None:
    """The team's, which tells that a run is lost; sooner."""
    automation = yaml.safe_load(LOST_RUNS.read_text())
    automation["trigger"]["within"] = LOST_S
    path = troubled.folder / LOST_RUNS.name
    path.write_text(yaml.safe_dump(automation))
    command = [BIN_DIR / "prefect", "automation", "create", "--from-file", path]
    subprocess.run(command, env=troubled.team.client_env(0), check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--away-s", type=float, default=10.0, help="how long a part is away")
    parser.add_argument("--direct", action="store_true", help="the worker asks the first server")
    given = parser.parse_args()
    if unknown := set(given.faults) - FAULTS.keys():
        parser.error(f"{', '.join(unknown)}: expected {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped
    if reason := missing():
        sys.exit(f"error: {reason}")
    if not given.direct and not shutil.which("nginx"):
        sys.exit("error: needs nginx: `apt-get install nginx-light`, or --direct")
    is_well = True
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        team = stack.enter_context(serving_team(folder))
        troubled = Troubled(team, folder, given.away_s)
        if not given.direct:
            troubled.start_proxy()
        create_automation(troubled)
        with team.client() as client:
            deployment = deploy_light(client)
        for name in given.faults or FAULTS:
            print(f"{name}: {FAULTS[name].says}", flush=True)
            for wrong in try_out(troubled, deployment, FAULTS[name]):
                is_well = False
                print(f"  wrong: {wrong}", flush=True)
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
