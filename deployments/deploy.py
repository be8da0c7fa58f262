"""Deploy to a Prefect server that is there already: what its pool and deployments lack is made.

Everything that can be found wrong is looked at before anything is made. What was made is removed
again if it cannot be finished.
"""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments import prefect_api as api
from deployments.layout import BIN_DIR, StackError, require_clone
from deployments.pools import POOL_KINDS, PoolKind
from deployments.servers import NamedServer, ask_for_pools, named_server
from deployments.stack import prefect_yaml
from ups import PROJECT_DIR
from ups.data.s3errors import redacted

DESCRIPTION = "Training of neural PDE simulators, made by `ups deploy`."
NO_SERVER = (
    "no Prefect server is named: `export PREFECT_API_URL=https://…/api`, with "
    "PREFECT_API_AUTH_STRING or PREFECT_API_KEY where it wants a login; `ups up` starts one here"
)
DEPLOY_TIMEOUT_S = 120.0
TAIL_LINES = 5


@dataclass(frozen=True, slots=True)
class Deployed:
    """What there is now; `made_pool` says whether it is new.

    Attributes:
        deployments: `<flow>/<deployment>`, in the order of `prefect.yaml`.
        queue: that they go to; None: the pool's default.
    """

    server: str
    pool: str
    kind: PoolKind
    made_pool: bool
    deployments: list[str]
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be other than `prefect.yaml` has it; None: nothing.

    Attributes:
        image: of the container that a run gets, which the pool says otherwise.
        queue: the work queue of the pool; the deployments are called after it, so that each queue
            has its own.
        at_once: how many runs of a deployment go on at the same time; more of them wait.
    """

    image: str | None = None
    queue: str | None = None
    at_once: int | None = None


def deploy(
    pool: str,
    kind: PoolKind = "process",
    names: Sequence[str] = (),
    changes: Changes = Changes(),
    priority: int | None = None,
) -> Deployed:
    """Send deployments of `prefect.yaml` to a work pool of the server that this shell names.

    Args:
        names: of the deployments; none: `train-burgers`.
        priority: of the queue: 1 goes first; None: as it is, or after all others.
    Raises:
        StackError: there is no server, it refuses, the pool is of another type, or a deployment
            is in use elsewhere; nothing was made then.
    """
    require_clone()
    wanted = _wanted(names or ["train-burgers"], pool, kind, changes)
    server = named_server()
    if server is None:
        raise StackError(NO_SERVER)
    with server.asked() as client:
        _check_pool(server, ask_for_pools(client), pool, kind, changes.image)
        known = {name: api.read_deployment(client, name) for name in wanted}
        _check_deployments(server, known, pool)
        made = _Made(pool, [name for name, found in known.items() if not found])
        try:
            made.pool_too = api.create_pool(client, pool, DESCRIPTION, kind)
            if changes.queue and api.create_queue(client, pool, changes.queue, priority):
                made.queue = changes.queue
            _register(server, list(wanted.values()))
        except BaseException:  # Ctrl-C, too, leaves nothing half-made
            _undo(client, made)
            raise
    return Deployed(server.shown, pool, kind, made.pool_too, list(wanted), changes.queue)


@dataclass(slots=True)
class _Made:
    """What was not there before."""

    pool: str
    deployments: list[str]
    pool_too: bool = False
    queue: str | None = None


def _wanted(
    names: Sequence[str], pool: str, kind: PoolKind, changes: Changes
) -> dict[str, dict[str, Any]]:
    """`<flow>/<deployment>` → what `prefect.yaml` says of it, sent to the pool."""
    known = {deployment["name"]: deployment for deployment in prefect_yaml()["deployments"]}
    if unknown := [name for name in names if name not in known]:
        raise StackError(
            f"no deployment {unknown[0]!r} in prefect.yaml, expected one of {', '.join(known)}"
        )
    found = {}
    for name, deployment in known.items():
        if name not in names:
            continue
        changed = copy.deepcopy(deployment)
        variables = changed["work_pool"]["job_variables"]
        if kind != "process":  # a container begins in the folder that its image says
            del variables["working_dir"]
        if changes.image is not None:
            variables["image"] = changes.image
        changed["work_pool"] = {"name": pool, "job_variables": variables}
        if changes.queue is not None:
            changed["work_pool"]["work_queue_name"] = changes.queue
            changed["name"] = f"{name}-{changes.queue}"
        if changes.at_once is not None:
            limit = changed.get("concurrency_limit", {"collision_strategy": "ENQUEUE"})
            changed["concurrency_limit"] = {**limit, "limit": changes.at_once}
        found[f"{flow_name(deployment)}/{changed['name']}"] = changed
    return found


def flow_name(deployment: Mapping[str, Any]) -> str:
    """The name of a deployment's flow, which is called like its function."""
    return str(deployment["entrypoint"].rpartition(":")[2].replace("_", "-"))


def _check_pool(
    server: NamedServer,
    pools: Mapping[str, Mapping[str, Any]],
    pool: str,
    kind: PoolKind,
    image: str | None,
) -> None:
    found = pools.get(pool)
    if found is None:
        if kind != "process" and image is None:
            raise StackError(
                f"no image for the new pool {pool} of type {kind}: give --image NAME:TAG, one that "
                "has this project in its working directory"
            )
    elif found["type"] != kind:
        hint = f"--pool-type {found['type']}, or " if found["type"] in POOL_KINDS else ""
        raise StackError(
            f"pool {pool} at {server.shown} is of type {found['type']}, expected {kind}: "
            f"give {hint}another name with --pool"
        )


def _check_deployments(
    server: NamedServer, known: Mapping[str, Mapping[str, Any] | None], pool: str
) -> None:
    """None of them serves another pool, whose runs would go elsewhere from now on."""
    for name, found in known.items():
        if found and found["work_pool_name"] not in (pool, None):
            raise StackError(
                f"{name} at {server.shown} goes to the pool {found['work_pool_name']}: give "
                f"--pool {found['work_pool_name']}, or `prefect deployment delete {name}` first"
            )


def _register(server: NamedServer, deployments: list[dict[str, Any]]) -> None:
    """Have Prefect's own CLI deploy them, from a file that is made for it."""
    tree = {**prefect_yaml(), "deployments": deployments}
    tree.pop("definitions", None)
    env = {**os.environ, **server.env, "PREFECT_PLUGINS_ENABLED": "false", "NO_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        command = [str(BIN_DIR / "prefect"), "--no-prompt", "deploy", "--all"]
        command += ["--prefect-file", str(file)]
        try:
            done = subprocess.run(
                command,
                env=env,
                cwd=PROJECT_DIR,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEPLOY_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise StackError(
                f"`prefect deploy` did not end in {DEPLOY_TIMEOUT_S:.0f} s; nothing was deployed"
            ) from None
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).strip().splitlines()[-TAIL_LINES:])
        raise StackError(f"`prefect deploy` failed, nothing was deployed: {redacted(said)}")


def _undo(client: httpx.Client, made: _Made) -> None:
    """Remove what was not there before, as far as the server still answers."""
    with contextlib.suppress(httpx.HTTPError):
        for name in made.deployments:
            if number := api.find_deployment(client, name):
                api.delete_deployment(client, number)
        if made.pool_too:  # and its queues with it
            api.delete_pool(client, made.pool)
        elif made.queue:
            api.delete_queue(client, made.pool, made.queue)
