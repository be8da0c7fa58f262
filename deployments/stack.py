"""The stack of one machine: Prefect server, object store, work pools, worker, deployments.

`up` starts what is not running, side by side where the order allows it, and waits until each
part answers; `down` stops what `up` started, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import yaml

from deployments import prefect_api as api
from deployments.database import CONNECTION_URL, check_database, database_env
from deployments.layout import (
    BIN_DIR,
    DATABASE,
    LOGIN,
    SERVER_DATABASE,
    TOML_HEADER,
    Stack,
    StackError,
    require_clone,
)
from ups import PROJECT_DIR
from ups.files import read_json, write_atomically, write_json

# In the order in which they are stopped.
PARTS = ("worker", "prefect-server", "object-store")
# What `ups up` makes. Deployments of other pools are registered where somebody asks for them
# (`ups deploy --pool gpu --name gpu`, a rented machine): here they would stand "Not Ready".
POOLS = {"local": "This machine: its worker is started by `ups up`."}
# The flows, and what defines the types and defaults of their parameters.
FORM_SOURCES = (
    "flows",
    "tasks/forms.py",
    "ups/config",
    "ups/machine/page_cache.py",
    "ups/startup/judge/limits.py",
    "ups/startup/measure/records.py",
    "ups/startup/measure/scenarios.py",
)
READY_TIMEOUT_S = 120.0
POLL_S = 0.1

Say = Callable[[str, float | None, str], None]
"""Takes a line of progress: part, seconds (None where nothing was waited for), what it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """What `up` waits for; `note` is shown once it answers."""

    name: str
    answers: Callable[[], bool]
    note: str


def up(stack: Stack, say: Say, store_is_up: Callable[[], None] | None = None) -> list[str]:
    """Start what is not running and wait until all of it answers.

    Args:
        store_is_up: called once the object store answers, while the Prefect server still starts.
    Returns:
        The parts that were started.
    Raises:
        StackError: a port is taken, a part died or does not answer, or this is no clone.
    """
    require_clone()
    processes = stack.processes
    with stack.lock(), stack.client(timeout_s=5) as client:
        if processes.is_ending("worker"):
            processes.stop("worker")
        _check_place(stack)
        stack.remember()
        write_prefect_toml(stack, say)
        started = [part for part in PARTS if not processes.running(part)]
        begin = time.monotonic()

        def start_again(part: str) -> None:
            if part in started:
                raise _fault(stack, part, f"{part} ended while it was starting")
            started.append(part)  # it was on its way out when `up` began
            _start(stack, part)
            if part == "worker":
                processes.release("worker")

        def wait(*parts: Part) -> None:
            for part, seconds in _as_answered(stack, parts, begin, start_again):
                if part.name in started:
                    say(part.name, seconds, part.note)

        try:
            for part in reversed(started):  # the worker only imports Prefect until it is released
                _start(stack, part)
            if deploying := not _is_deployed(stack):  # so does this
                _start_deploy(stack)

            wait(Part("object-store", lambda: _store_answers(stack), stack.s3_url))
            if store_is_up:
                store_is_up()
            wait(Part("prefect-server", lambda: api.is_ready(client), stack.ui_url))
            wait(Part("work-pools", lambda: _prepare(client, started), ", ".join(POOLS)))
            if not deploying and not deployment_names() <= api.deployment_names(client):
                deploying = True
                _start_deploy(stack)

            if "worker" in started:
                processes.release("worker")
            parts = [_worker_part(stack, client)]
            if deploying:
                started.append("deployments")
                processes.release("deploy")
                parts.append(_deploy_part(stack))
            wait(*parts)
        finally:
            processes.stop("deploy")
    return started


def down(stack: Stack, say: Say) -> list[str]:
    """Stop what `up` started; runs under way are ended, too. Returns what was stopped."""
    processes = stack.processes
    stopped: list[str] = []
    if not stack.folder.is_dir():  # the lock would make it
        return stopped
    with stack.lock():
        for part in PARTS:
            begin = time.monotonic()
            process = processes.running(part)
            outcome = processes.stop(part)
            if outcome and process:
                stopped.append(part)
                say(part, time.monotonic() - begin, f"{outcome} (pid {process.pid})")
            if part == "worker" and processes.running("prefect-server"):
                _end_orphans(stack, say)
    return stopped


def write_prefect_toml(stack: Stack, say: Say) -> None:
    """Point `prefect` in this folder at the server; a file of the user's own is left alone."""
    path = stack.prefect_toml
    login = f"auth_string = {json.dumps(stack.login)}\n" if stack.login else ""
    text = f'{TOML_HEADER}[api]\nurl = "{stack.api_url}"\n{login}\n[plugins]\nenabled = true\n'
    current = path.read_text() if path.exists() else TOML_HEADER
    if not current.startswith(TOML_HEADER):
        needed = text.replace(json.dumps(stack.login), '"…"') if stack.login else text
        say("prefect.toml", None, f"not written: {path} is yours. It needs: " + repr(needed))
    elif current != text:
        write_atomically(path, text.encode(), durable=False, mode=0o600 if login else 0o666)
    if os.environ.get("PREFECT_API_URL", stack.api_url) != stack.api_url:
        say("prefect.toml", None, "PREFECT_API_URL in your environment goes before it: unset that")


def _check_place(stack: Stack) -> None:
    """The ports of what is to be started are free, and what runs does so where it is wanted."""
    processes = stack.processes
    running = [part for part in PARTS if processes.running(part)]
    remembered = Stack.remembered()
    if "prefect-server" in running:
        for field, variable in (("login", LOGIN), ("database", DATABASE)):
            if getattr(remembered, field) != getattr(stack, field):
                raise StackError(
                    f"the Prefect server was started with another {field} than {variable} says, or "
                    "with none: run `ups down` first to change it"
                )
    else:
        check_database(stack.database)
    if running and remembered != stack:
        raise StackError(
            f"the stack already runs on {remembered.host}, ports {remembered.prefect_port} and "
            f"{remembered.s3_port}: run `ups down` first to move it"
        )
    for part, field in (("prefect-server", "prefect_port"), ("object-store", "s3_port")):
        if part not in running:
            stack.check_port(field)


def _start(stack: Stack, part: str) -> None:
    if part == "object-store":
        _start_store(stack)
    elif part == "prefect-server":
        command = [str(BIN_DIR / "prefect"), "server", "start"]
        command += ["--host", stack.host, "--port", str(stack.prefect_port)]
        own = {k: v for k, v in os.environ.items() if k.startswith(SERVER_DATABASE)}
        wanted = database_env(stack.database)  # whose address goes before one of Prefect's own name
        env = {**stack.prefect_env(), **wanted, **own}
        env |= {CONNECTION_URL: wanted[CONNECTION_URL]} if wanted else {}
        stack.processes.start(part, command, env=env, cwd=stack.folder)
    else:
        warm = ["--warm-socket", str(stack.folder / "warm.sock")]
        _start_gated(stack, part, part, "local", "--name", api.WORKER_NAME, *warm)


def _start_store(stack: Stack) -> None:
    objects = stack.folder / "s3"
    objects.mkdir(parents=True, exist_ok=True)
    keys = stack.store_env()
    # By the environment: a key among the arguments could be read by every user of the machine.
    pair = f'"{keys["AWS_ACCESS_KEY_ID"]},{keys["AWS_SECRET_ACCESS_KEY"]}"'
    command = [str(BIN_DIR / "rclone"), "serve", "s3", str(objects), "--config", ""]
    command += ["--addr", f"{stack.host}:{stack.s3_port}"]
    command += ["--etag-hash", ""]  # else it reads all of an object before the first byte
    env = {**stack.prefect_env(), "RCLONE_AUTH_KEY": pair}
    stack.processes.start("object-store", command, env=env, cwd=stack.folder)


def _prepare(client: httpx.Client, started: list[str]) -> bool:
    """Work pools, and an end for runs that a worker which died has left behind."""
    if [pool for pool, text in POOLS.items() if api.create_pool(client, pool, text)]:
        started.append("work-pools")
    if "worker" in started and not api.other_workers(client, "local"):
        api.end_runs(client, "local", "The worker was not running any more.")
    return True


def _start_gated(stack: Stack, name: str, *arguments: str) -> None:
    env = stack.prefect_env()
    if name == "worker":  # runs inherit its environment
        env |= stack.store_env()
    stack.processes.start_gated(name, *arguments, env=env)


def _start_deploy(stack: Stack) -> None:
    names = [word for name in sorted(deployment_names()) for word in ("--name", name)]
    _start_gated(stack, "deploy", "prefect", "--no-prompt", "deploy", *names)


def _worker_part(stack: Stack, client: httpx.Client) -> Part:
    def is_online() -> bool:
        record = stack.processes.record("worker")
        return api.worker_is_online(client, "local", record.created if record else 0.0)

    return Part("worker", is_online, "pool local")


def _is_deployed(stack: Stack) -> bool:
    """Whether nothing that the deployments are made from has changed since they were made."""
    try:
        return read_json(stack.folder / "deployed.json") == _fingerprint()
    except (FileNotFoundError, ValueError):
        return False


def _deploy_part(stack: Stack) -> Part:
    mark = stack.folder / "deployed.json"
    mark.unlink(missing_ok=True)
    fingerprint = _fingerprint()

    def is_done() -> bool:
        code = stack.processes.exit_code("deploy")
        if code:
            raise _fault(stack, "deploy", f"`prefect deploy` ended with exit code {code}")
        if code == 0:
            write_json(mark, fingerprint)
        return code == 0

    return Part("deployments", is_done, ", ".join(sorted(deployment_names())))


def deployment_names(pools: Container[str] = POOLS) -> set[str]:
    """The names of the deployments in `prefect.yaml` that go to these pools."""
    found = prefect_yaml()["deployments"]
    return {each["name"] for each in found if each["work_pool"]["name"] in pools}


def prefect_yaml() -> dict[str, Any]:
    """What `prefect.yaml` says."""
    return dict(yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text()))


def _fingerprint() -> dict[str, str]:
    """Hashes of what the deployments, and the parameters of their run forms, are made from."""
    files = [PROJECT_DIR / "prefect.yaml"]
    for name in FORM_SOURCES:
        path = PROJECT_DIR / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _end_orphans(stack: Stack, say: Say) -> None:
    """A run whose worker was stopped would stay Running for ever, and keep others waiting."""
    try:
        with stack.client(timeout_s=5) as client:
            if not api.is_ready(client):  # stopped while it was starting
                return
            names = api.end_runs(client, "local", "The stack was stopped (`ups down`).")
    except httpx.HTTPError as error:
        say("runs", None, f"could not be ended: {error!r}")
        return
    if names:
        say("runs", None, f"ended: {', '.join(names)}")


def _store_answers(stack: Stack) -> bool:
    httpx.get(stack.s3_url, timeout=2, trust_env=False)  # without a signature: any answer will do
    return True


def _as_answered(
    stack: Stack, parts: Iterable[Part], begin: float, ended: Callable[[str], None]
) -> Iterator[tuple[Part, float]]:
    """Wait for all; yields each part as it answers, with the seconds since `begin`.

    Args:
        ended: called with the name of each part that does not run meanwhile.
    """
    waiting, deadline = list(parts), time.monotonic() + READY_TIMEOUT_S
    while waiting:
        for name in PARTS:
            if not stack.processes.running(name):
                ended(name)
        for part in list(waiting):
            if _answers(part):
                waiting.remove(part)
                yield part, time.monotonic() - begin
            elif time.monotonic() > deadline:
                log = part.name if part.name in PARTS else "deploy"
                raise _fault(stack, log, f"{part.name}: no answer in {READY_TIMEOUT_S:.0f} s")
        if waiting:
            time.sleep(POLL_S)


def _answers(part: Part) -> bool:
    try:
        return part.answers()
    except httpx.HTTPError:  # such as 503 while SQLite is busy: ask again
        return False


def _fault(stack: Stack, log: str, what: str) -> StackError:
    tail = stack.processes.log_tail(log)
    return StackError(f"{what}. The end of {stack.processes.log_path(log)}:\n{tail}")
