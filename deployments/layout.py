"""Where the stack of one machine keeps its files, on which ports it listens, and the
environments that its parts run in.

    .stack/                 or $UPS_STACK_DIR
      settings.json         host and ports of the last `ups up`
      env                   keys and address of the object store (mode 0600)
      server.env            login and database of the Prefect server (mode 0600), if it has them
      s3/<bucket>/<key>     the objects
      prefect/              PREFECT_HOME: the server's database, results
      processes/*.json      what was started
      logs/*.log
    prefect.toml            beside it: makes `prefect` in that folder talk to this server
"""

from __future__ import annotations

import errno
import functools
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from deployments.prefect_api import authorization
from deployments.processes import Processes
from ups import PROJECT_DIR
from ups.errors import UpsError
from ups.files import exclusive_lock, read_json, write_atomically, write_json

BIN_DIR = Path(sys.executable).parent
DEFAULTS = {"host": "127.0.0.1", "prefect_port": 4200, "s3_port": 9000}
# How each port is named to the user: (part, option, environment variable).
PORT_NAMES = {
    "prefect_port": ("the Prefect server", "--prefect-port", "UPS_PREFECT_PORT"),
    "s3_port": ("the object store", "--s3-port", "UPS_S3_PORT"),
}
# How Prefect's worker is to behave, whatever machine it is on.
WORKER_ENV = {
    # Events wake the worker as soon as a run is due (deployments/worker.py); polling, which finds
    # what an event missed, may be rare. Far below a second SQLite answers "database is locked".
    "PREFECT_WORKER_QUERY_SECONDS": "10",
    # Otherwise scheduled runs may begin before their time.
    "PREFECT_WORKER_PREFETCH_SECONDS": "0",
    # What a server answers whose PostgreSQL or Redis restarts. Prefect asks again for a minute if
    # it is 503, but not if it is 500: a run would be lost as it says that it has completed.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "ups",
    "NO_COLOR": "1",
}
# A PostgreSQL database for the server. A login that it wants, by Prefect's own name; the one that
# its clients send.
DATABASE = "UPS_DATABASE_URL"
LOGIN, CLIENT_LOGIN = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
SERVER_DATABASE = "PREFECT_SERVER_DATABASE_"  # what Prefect's own settings of it begin with
TOML_HEADER = "# Written by `ups up`: makes `prefect` in this folder talk to the local server.\n"


class StackError(UpsError):
    """Raised when the stack cannot start, or a part of it, or a run on it, does not answer."""


@dataclass(frozen=True)
class Stack:
    """Where the stack of this machine is: its folder, and the addresses of its servers.

    Attributes:
        login: `user:password` that the Prefect server wants; empty: none.
        database: the address of its PostgreSQL database; empty: SQLite.
    """

    folder: Path
    host: str
    prefect_port: int
    s3_port: int
    login: str = field(default="", repr=False)
    database: str = field(default="", repr=False)

    @classmethod
    def find(
        cls, host: str | None = None, prefect_port: int | None = None, s3_port: int | None = None
    ) -> Stack:
        """The stack of this machine: as asked for, else as it was last started, else default.

        Login and database are asked for by PREFECT_SERVER_API_AUTH_STRING and UPS_DATABASE_URL;
        an empty one asks for none.
        """
        known = cls.remembered()
        wanted = {"host": host, "prefect_port": prefect_port, "s3_port": s3_port}
        given = {key: value for key, value in wanted.items() if value is not None}
        secrets = {"login": os.environ.get(LOGIN), "database": os.environ.get(DATABASE)}
        given |= {key: value for key, value in secrets.items() if value is not None}
        return replace(known, **given)  # type: ignore[arg-type]

    @classmethod
    def remembered(cls) -> Stack:
        """The stack of this machine as it was last started, whatever is asked for."""
        folder = stack_dir()
        known = read_env(folder / "server.env")
        secret = {"login": known.get(LOGIN, ""), "database": known.get(DATABASE, "")}
        return cls(folder, **(DEFAULTS | _remembered(folder) | secret))  # type: ignore[arg-type]

    @functools.cached_property
    def processes(self) -> Processes:
        return Processes(self.folder / "processes", self.folder / "logs")

    @property
    def ui_url(self) -> str:
        return f"http://{self._reachable_host}:{self.prefect_port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    def client(self, timeout_s: float) -> httpx.Client:
        """A client of the Prefect server, with its login; no proxy leads there."""
        headers = authorization({CLIENT_LOGIN: self.login})
        return httpx.Client(
            base_url=self.api_url, headers=headers, timeout=timeout_s, trust_env=False
        )

    @property
    def s3_url(self) -> str:
        return f"http://{self._reachable_host}:{self.s3_port}"

    @property
    def prefect_toml(self) -> Path:
        return self.folder.parent / "prefect.toml"

    @property
    def _reachable_host(self) -> str:
        if self.host in ("0.0.0.0", "::"):
            return "127.0.0.1"
        return f"[{self.host}]" if ":" in self.host else self.host

    def remember(self) -> None:
        """Have later commands find this stack without being told where it is."""
        write_json(self.folder / "settings.json", {key: getattr(self, key) for key in DEFAULTS})
        given = {LOGIN: self.login, DATABASE: self.database}
        if secrets := {key: value for key, value in given.items() if value}:
            write_env(self.folder / "server.env", secrets)
        else:
            (self.folder / "server.env").unlink(missing_ok=True)

    def lock(self) -> AbstractContextManager[None]:
        """Held by one `ups up` or `ups down` at a time."""
        return exclusive_lock(self.folder / "lock")

    def check_port(self, field: str) -> None:
        """Refuse a port or an address on which nothing can listen.

        Raises:
            StackError: the port is taken, or the host is not an address of this machine.
        """
        part, option, variable = PORT_NAMES[field]
        port = getattr(self, field)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise StackError(
                        f"port {port} on {self.host}, wanted for {part}, is taken by another "
                        f"process: stop that one, or take another port with {option} or {variable}"
                    ) from None
                raise StackError(
                    f"cannot listen on {self.host}:{port} for {part} ({error.strerror}): change "
                    f"the address with --host or UPS_HOST, the port with {option} or {variable}"
                ) from None

    def store_env(self) -> dict[str, str]:
        """The environment with which boto3 reaches the object store, as `env` holds it.

        The keys are made once; the address follows the port.
        """
        path, known = self.env_file, self.known_store_env()
        env = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            **known,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.s3_url,
        }
        if env != known:
            write_env(path, env)
        return env

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    def known_store_env(self) -> dict[str, str]:
        """What `env` holds now; empty where the store has never been started."""
        return read_env(self.env_file)

    def prefect_env(self) -> dict[str, str]:
        """The environment of the worker, the CLI calls and, with its database, the server.

        What would lead Prefect or boto3 to another server, account or store is left out, and what
        keeps Python from writing bytecode: without it each process compiles Prefect (1.2 s) and
        torch (1.5 s) anew. Other settings of the user's pass through; those of the database, which
        hold a password, do to the server alone.
        """
        elsewhere = ("AWS_", "PREFECT_API_", "PREFECT_CLOUD_", "PREFECT_PROFILE", "PREFECT__")
        left_out = (*elsewhere, LOGIN, DATABASE, SERVER_DATABASE, "PYTHONDONTWRITEBYTECODE")
        env = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        # No proxy reaches the servers of this machine; programs read either spelling.
        given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        direct = ",".join(filter(None, [given, self._reachable_host.strip("[]")]))
        return {
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # The default keeps leases in memory: a server that is killed would never give the
            # slot of a deployment's concurrency limit back.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
            # A cancelled run whose worker died ends, and gives its slot back; default: 300.
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
            # Runs leave the database (not their folders) 90 days after their end, by default
            # PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD; Prefect's default keeps them.
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            **WORKER_ENV,
            **env,
            "PATH": f"{BIN_DIR}{os.pathsep}{env.get('PATH', os.defpath)}",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api_url,
            **({LOGIN: self.login, CLIENT_LOGIN: self.login} if self.login else {}),
            "NO_PROXY": direct,
            "no_proxy": direct,
            # Bare deployment names are for people; the plug-in would cost each run 0.3 s.
            "PREFECT_PLUGINS_ENABLED": "false",
            "PYTHONUNBUFFERED": "1",
        }


def is_clone() -> bool:
    """Whether this package lies in a clone of the repository, not in an environment alone."""
    return (PROJECT_DIR / "prefect.yaml").is_file()


def require_clone() -> None:
    """Refuse to start a stack from an installed package, which lacks the deployments' file.

    Raises:
        StackError: this is no clone of the repository.
    """
    if not is_clone():
        raise StackError(
            f"the stack needs a clone of the repository: no prefect.yaml in {PROJECT_DIR}, where "
            "this package is installed; `git clone` the repository and run `make up` there"
        )


def read_env(path: Path) -> dict[str, str]:
    """The variables of a file with a `KEY=value` on each line; none where it is not there."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def write_env(path: Path, env: Mapping[str, str]) -> None:
    """Write such a file, which nobody else may read."""
    lines = "".join(f"{key}={value}\n" for key, value in env.items())
    write_atomically(path, lines.encode(), durable=False, mode=0o600)


def stack_dir() -> Path:
    """`$UPS_STACK_DIR`, else `.stack` in the clone."""
    return Path(os.environ.get("UPS_STACK_DIR") or PROJECT_DIR / ".stack").resolve()


def _remembered(folder: Path) -> dict[str, object]:
    try:
        settings = read_json(folder / "settings.json")
    except (FileNotFoundError, ValueError):
        return {}
    return {key: settings[key] for key in DEFAULTS if key in settings}
