"""A team's server: two Prefect servers, their services, PostgreSQL and Redis, with a login.

Real processes on free ports of 127.0.0.1, set up by `deployments/team/server.env`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deployments import prefect_api as api
from deployments.database import CONNECTION_URL
from deployments.layout import BIN_DIR, CLIENT_LOGIN, LOGIN, PROJECT_DIR, WORKER_ENV, read_env
from deployments.processes import Processes
from deployments.servers import NamedServer
from deployments.stack import prefect_yaml
from tests.live import LiveStack, free_ports, wait_until
from ups.files import write_json

SETTINGS = PROJECT_DIR / "deployments" / "team" / "server.env"
DATABASE_PASSWORD = "of-the-database"
MAX_CONNECTIONS = 200  # 40 for each server and for the services
START_S = 180.0
POOL, FLOW, NUM_TASKS = "team", "light", 3  # of the light flow: tests/team_flow.py


def deploy_light(client: httpx.Client) -> str:
    """Make pool and deployment with what `prefect.yaml` says of a run; returns the latter's id."""
    api.create_pool(client, POOL, "Runs of a light flow.")
    flow = client.post("/flows/", json={"name": FLOW}).raise_for_status().json()
    variables = prefect_yaml()["definitions"]["job_variables"]
    body = {
        "name": FLOW,
        "flow_id": flow["id"],
        "work_pool_name": POOL,
        "entrypoint": "tests/team_flow.py:light",
        "path": ".",
        "job_variables": {**variables, "working_dir": str(PROJECT_DIR)},
    }
    return str(client.post("/deployments/", json=body).raise_for_status().json()["id"])


def missing() -> str | None:
    """Why no such server can be started here, and the remedy; None if it can."""
    if not find_initdb().is_file():
        return "needs PostgreSQL's initdb: `apt-get install postgresql`"
    if not shutil.which("redis-server"):
        return "needs redis-server: `apt-get install redis-server`"
    if importlib.util.find_spec("prefect_redis") is None:
        return "needs prefect-redis: `make install`, or the extra `team`"
    return None


def find_initdb() -> Path:
    """Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1] if found else Path(shutil.which("initdb") or "")


@dataclass(frozen=True)
class Postgres:
    """A database cluster of its own.

    Attributes:
        url: with its password.
    """

    url: str = field(repr=False)
    _control: Sequence[Any]
    _options: str
    _quick: Mapping[str, Any]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        subprocess.run([*self._control, "-o", self._options, "start"], **self._quick)

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: `immediate` is as good as a crash, `fast` ends what is under way."""
        subprocess.run([*self._control, "-m", mode, "stop"], **self._quick)


@contextlib.contextmanager
def serving_postgres(*options: str) -> Iterator[Postgres]:
    """A database with a password, in a cluster of its own."""
    initdb = find_initdb()
    user = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    with tempfile.TemporaryDirectory() as name:
        folder, (port,) = Path(name), free_ports(1)
        if user:
            shutil.chown(folder, "postgres")
        (folder / "password").write_text(DATABASE_PASSWORD)
        cluster = ["-D", str(folder / "db")]
        made = ["-U", "ups", "-A", "scram-sha-256", "--no-sync", "--pwfile", folder / "password"]
        quick = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **user}
        subprocess.run([initdb, *cluster, *made], **quick)
        control = [initdb.with_name("pg_ctl"), *cluster, "-w", "-l", folder / "log"]
        server = f"-p {port} -k {folder} -c fsync=off -c listen_addresses=127.0.0.1"
        url = f"postgres://ups:{DATABASE_PASSWORD}@127.0.0.1:{port}/postgres"
        postgres = Postgres(url, control, " ".join([server, *options]), quick)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


@dataclass
class Team:
    """What runs of a team's server, and how it is reached.

    Attributes:
        urls: the API of each server.
        server_env: what servers and services are started with.
        commands: what starts each part, by its name.
    """

    processes: Processes
    postgres: Postgres
    urls: list[str]
    login: str = field(repr=False)
    server_env: Mapping[str, str] = field(repr=False)
    commands: dict[str, Sequence[str]]

    def start(self, name: str) -> None:
        """Start a part."""
        folder = self.processes.folder.parent
        self.processes.start(name, self.commands[name], env=self.server_env, cwd=folder)

    def start_server(self, number: int) -> None:
        """Start a server, and wait until it answers."""
        self.start(f"server-{number}")
        with self.client(number) as client:
            wait_until(lambda: self._answers(f"server-{number}", client), START_S, 0.1)

    def _answers(self, name: str, client: httpx.Client) -> bool:
        assert self.processes.running(name), self.processes.log_tail(name)
        return api.is_ready(client)

    def at(self, index: int, login: str | None = None) -> NamedServer:
        """A server as a client names it, with the login or with another one; "": without."""
        login = self.login if login is None else login
        return NamedServer(self.urls[index], {CLIENT_LOGIN: login} if login else {})

    def client(self, index: int = 0) -> httpx.Client:
        return self.at(index).client(timeout_s=60)

    def client_env(self, index: int) -> dict[str, str]:
        """The environment of a worker or a command that talks to one of the servers."""
        return {**_bare(), **WORKER_ENV, "PREFECT_PLUGINS_ENABLED": "false", **self.at(index).env}

    def cpu_seconds(self) -> dict[str, float]:
        """What each process has used so far, its children included."""
        used = {}
        for path in sorted(self.processes.folder.glob("*.json")):
            if process := self.processes.running(path.stem):
                family = [process, *process.children(recursive=True)]
                times = [one.cpu_times() for one in family]
                used[path.stem] = sum(t.user + t.system for t in times)
        return used


def as_server_of(live: LiveStack, team: Team) -> None:
    """Have a stack take the first of a team's servers for its own, as if `ups up` had started it.

    Store, worker and deployments are then made as ever; whoever stops the stack stops that server.
    """
    live.stack.remember()
    record = team.processes.record("server-0")
    assert record is not None
    path = live.stack.folder / "processes" / "prefect-server.json"
    write_json(path, {**asdict(record), "name": "prefect-server"})


def env_of_stack_on(team: Team) -> dict[str, str]:
    """What a stack that is to take a team's server is asked for."""
    return {"UPS_PREFECT_PORT": str(httpx.URL(team.urls[0]).port), LOGIN: team.login}


def _bare() -> dict[str, str]:
    """This environment without what leads to another server or store; as after `activate`."""
    left_out = ("PREFECT_", "AWS_", "UPS_", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**env, "PATH": f"{BIN_DIR}{os.pathsep}{os.environ['PATH']}"}


@contextlib.contextmanager
def serving_team(folder: Path, **changes: str) -> Iterator[Team]:
    """Start all of it, and stop it at the end.

    Args:
        changes: further settings of servers and services.
    """
    processes = Processes(folder / "processes", folder / "logs")
    login = f"admin:{secrets.token_hex(8)}"
    redis_port, *ports = free_ports(3)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(serving_postgres(f"-c max_connections={MAX_CONNECTIONS}"))
        stack.callback(_stop, processes)
        redis, password = f"127.0.0.1:{redis_port}", secrets.token_hex(8)
        config = folder / "redis.conf"  # by a file: the password is to stand in no command line
        config.write_text(
            f"bind 127.0.0.1\nport {redis_port}\nrequirepass {password}\n"
            f"dir {folder}\nappendonly yes\nsave ''\n"
        )
        env = {
            **_bare(),
            **read_env(SETTINGS),
            "PREFECT_HOME": str(folder / "prefect"),
            CONNECTION_URL: postgres.url.replace("postgres://", "postgresql+asyncpg://"),
            "PREFECT_REDIS_MESSAGING_URL": f"redis://:{password}@{redis}/0",
            "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": f"redis://:{password}@{redis}/0",
            "PREFECT_SERVER_DOCKET_URL": f"redis://:{password}@{redis}/1",
            LOGIN: login,
            **changes,
        }
        servers = [f"http://127.0.0.1:{port}/api" for port in ports]
        prefect = str(BIN_DIR / "prefect")
        serve = [prefect, "server", "start", "--no-services", "--host", "127.0.0.1", "--port"]
        commands = {
            "redis": ["redis-server", str(config)],
            "services": [prefect, "server", "services", "start"],
            **{f"server-{number}": [*serve, str(port)] for number, port in enumerate(ports)},
        }
        team = Team(processes, postgres, servers, login, env, commands)
        team.start("redis")
        # One by one: the first migrates the database. On an empty one, two that start at once would
        # both register Prefect's block types, and one would end with an error.
        team.start_server(0)
        team.start("services")
        team.start_server(1)
        yield team


def _stop(processes: Processes) -> None:
    for path in sorted(processes.folder.glob("*.json"), reverse=True):  # workers come first
        processes.stop(path.stem)
