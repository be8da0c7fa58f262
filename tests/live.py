"""Fixtures that start things: a Prefect server, a whole stack, the examples that run on one."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.layout import PROJECT_DIR, Stack


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a server with an empty database; no heartbeats, which cost a second a flow."""
    from prefect import settings
    from prefect.testing.utilities import prefect_test_harness

    changes = {
        settings.PREFECT_HOME: tmp_path_factory.mktemp("prefect"),
        settings.PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        settings.PREFECT_SERVER_ANALYTICS_ENABLED: False,
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        settings.PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with settings.temporary_settings(changes), prefect_test_harness(server_startup_timeout=90):
        yield settings.PREFECT_API_URL.value()


class LiveStack:
    """A stack with a folder and ports of its own, driven by `ups` and asked over its API."""

    def __init__(self, folder: Path, examples: dict[str, str], **env: str) -> None:
        self.folder, self.examples = folder, examples
        prefect_port, s3_port = free_ports(2)
        prefect_port = int(env.get("UPS_PREFECT_PORT", prefect_port))
        self.env = {
            "UPS_STACK_DIR": str(folder / ".stack"),
            "UPS_PREFECT_PORT": str(prefect_port),
            "UPS_S3_PORT": str(s3_port),
            "PDEBENCH_ROOT": "",  # a person's own data stay out
            **env,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.env.items():
                patch.setenv(name, value)
            self.stack = Stack.find(prefect_port=prefect_port, s3_port=s3_port)
        self.env["PREFECT_API_URL"] = self.stack.api_url  # whatever prefect.toml the clone has
        self.pages_url = self.stack.ui_url
        self.api = self.stack.client(timeout_s=60)  # as Prefect's clients
        self.means = {"4300": str(prefect_port)}  # what stands for the words of an example
        self._done: dict[str, subprocess.CompletedProcess[str]] = {}

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """`ups …` in a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.cli.app", *arguments],
            env={**os.environ, **self.env, **changes},
            cwd=PROJECT_DIR,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ups(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`ups("up", UPS_S3_PORT="9001")`: the command, when it is done."""
        with self.start(*arguments, **changes) as process:
            output, errors = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def words(self, name: str) -> list[str]:
        """The example in the help of a command, without `ups`."""
        return [self.means.get(word, word) for word in shlex.split(self.examples[name])[1:]]

    def example(self, name: str) -> subprocess.CompletedProcess[str]:
        """What came of it; it is run once."""
        if name not in self._done:
            self._done[name] = self.ups(*self.words(name))
        return self._done[name]

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the API answers; asked again while SQLite is busy, which is a 503."""
        deadline = time.monotonic() + 60
        while True:
            answer = self.api.request(method, path, json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                assert answer.is_success, answer.text
                return answer.json()
            assert time.monotonic() < deadline, answer.text
            time.sleep(1)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.ask("GET", f"/deployments/name/{name}")

    def run(self, run_id: str) -> dict[str, Any]:
        return self.ask("GET", f"/flow_runs/{run_id}")

    def task_runs(self, run_id: str) -> list[dict[str, Any]]:
        """Of a flow run, without those that stand for the flow runs it triggered."""
        only = {"flow_runs": {"id": {"any_": [run_id]}}}
        found = self.ask("POST", "/task_runs/filter", only)
        states = [task["state"] or {"state_details": {}} for task in found]
        ours = [not state["state_details"].get("child_flow_run_id") for state in states]
        return list(itertools.compress(found, ours))

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        only = {"deployments": {"id": {"any_": [self.deployment(deployment)["id"]]}}}
        return self.ask("POST", "/flow_runs/filter", only)

    def subflows(self, run_id: str) -> list[dict[str, Any]]:
        only = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
        return self.ask("POST", "/flow_runs/filter", only)

    def artifact(self, key: str, run_id: str) -> dict[str, Any]:
        """That a flow run made under this key."""
        only = {"key": {"any_": [key]}, "flow_run_id": {"any_": [run_id]}}
        (artifact,) = self.ask("POST", "/artifacts/filter", {"artifacts": only})
        return artifact

    def wait(self, condition: Callable[[], object]) -> float:
        return wait_until(condition, timeout_s=120, poll_s=0.25)

    def wait_for_state(self, run_id: str, *types: str) -> dict[str, Any]:
        """The run once its state is one of these types, by default a final one."""
        wanted = types or ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.wait(lambda: self.run(run_id)["state_type"] in wanted)
        return self.run(run_id)


@pytest.fixture(scope="session")
def new_stack() -> Callable[..., contextlib.AbstractContextManager[LiveStack]]:
    """`with new_stack(folder) as live`: whatever of it runs at the end is stopped."""

    @contextlib.contextmanager
    def make(
        folder: Path, examples: dict[str, str] | None = None, **env: str
    ) -> Iterator[LiveStack]:
        live = LiveStack(folder, examples or {}, **env)
        try:
            yield live
        finally:
            live.ups("down")
            live.api.close()

    return make


def wait_until(
    condition: Callable[[], object], timeout_s: float = 10, poll_s: float = 0.02
) -> float:
    """Returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"not after {timeout_s} s"
        time.sleep(poll_s)
    return time.monotonic() - began


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


# What the examples in the help of these commands need; tests of all that need the same run them.
NEEDS = {
    "a stack": (
        *("ups up", "ups status", "ups doctor", "ups run", "ups sweep", "ups follow", "ups down"),
    ),
    "a stack for minutes": ("ups benchmark",),
    "a server": ("ups deploy", "ups worker"),
    "a store": ("ups data put", "ups data get"),
    "a shared cache": ("ups cache push", "ups cache pull"),
    "vastai": ("ups vast search", "ups vast launch", "ups vast resume", "ups vast onstart",
               "ups vast destroy", "ups vast setup-env"),
}  # fmt: skip


@pytest.fixture(scope="session")
def commands() -> dict[str, Any]:
    """Every command without commands below it, by its full name."""
    from typer.main import get_command

    from deployments.cli.app import app

    def below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
        for word, found in getattr(command, "commands", {}).items():
            yield from below(found, f"{name} {word}")

    return dict(below(get_command(app), "ups"))


@pytest.fixture(scope="session")
def examples_that_need(commands: dict[str, Any]) -> Callable[[str | None], dict[str, str]]:
    """`examples_that_need("a stack")`: command → the example in its help; None: all others."""
    elsewhere = {name for names in NEEDS.values() for name in names}

    def find(need: str | None) -> dict[str, str]:
        names = NEEDS[need] if need else (name for name in commands if name not in elsewhere)
        return {name: re.findall(r"Example: (.+)", commands[name].epilog)[0] for name in names}

    return find
