"""The Prefect servers that this machine talks to, their pools, deployments and workers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from deployments import prefect_api as api
from deployments.doctor.findings import Finding, Findings
from deployments.layout import Stack, is_clone
from deployments.stack import PARTS, POOLS, deployment_names
from ups.machine.host import versions

TIMEOUT_S = 5.0
OWN_POOL = "local"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        is_own: whether it is the one of this machine's stack.
        pools: what it says of its work pools, by their names.
    """

    url: str
    is_own: bool
    client: httpx.Client
    pools: Mapping[str, dict[str, Any]]


def examine_servers(stack: Stack) -> tuple[list[Finding], bool]:
    """Look at the stack's server, and at another one that this shell names.

    Returns:
        What was found; whether a server answers at the stack's address.
    """
    server, pool, worker = Findings("server"), Findings("pool"), Findings("worker")
    named, headers = _named_server(server)
    own = _own_server(stack, headers if named in (None, stack.api_url) else {}, server)
    if named is None and own is not None:
        server.warn(
            "this shell",
            f"`prefect` knows no server in {Path.cwd()}",
            f"work in {stack.prefect_toml.parent}, or `export PREFECT_API_URL={stack.api_url}`",
        )
    other = None
    if named is not None and named != stack.api_url:
        other = _other_server(named, headers, stack if own else None, server)
    found = [one for one in (own, other) if one is not None]
    for one in found:
        with contextlib.closing(one.client):
            try:
                _examine_pools(one, pool)
                _examine_workers(one, stack, worker)
            except (httpx.HTTPError, ValueError) as error:
                pool.fault("pools", f"{one.url}: {error}", "ask again: `ups doctor`")
    if not found:
        pool.skip("pools", "not checked, no server answers")
        _examine_own_worker(stack, worker)
    return [*server, *pool, *worker], own is not None


def _named_server(findings: Findings) -> tuple[str | None, dict[str, str]]:
    """What Prefect's own settings say: variables, `prefect.toml` of this folder, the profile."""
    try:
        from prefect.settings import get_current_settings

        settings = get_current_settings().api
    except ValidationError as error:  # whose text would show the values
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        remedy = "correct the variable PREFECT_…, prefect.toml, or the profile that sets it"
        findings.fault("settings", f"Prefect refuses {error.title}: {'; '.join(faults)}", remedy)
        return None, {}
    login = {"PREFECT_API_AUTH_STRING": settings.auth_string, "PREFECT_API_KEY": settings.key}
    env = {name: value.get_secret_value() for name, value in login.items() if value is not None}
    return settings.url, api.authorization(env)


def _own_server(stack: Stack, headers: dict[str, str], findings: Findings) -> Server | None:
    process = stack.processes.running("prefect-server")
    client = httpx.Client(
        base_url=stack.api_url, headers=headers, timeout=TIMEOUT_S, trust_env=False
    )
    fault, pools = _ask(client)
    if not fault:
        by = f"pid {process.pid}" if process else "not started by `ups up`"
        findings.ok("this machine's", f"{stack.ui_url} answers ({by})")
        _compare_versions(client, findings)
        return Server(stack.api_url, True, client, pools)
    client.close()
    others = [part for part in PARTS if stack.processes.running(part)]
    if process:
        log = stack.processes.log_path("prefect-server")
        findings.fault(
            "this machine's",
            f"{stack.api_url} (pid {process.pid}): {fault[0]}",
            f"see {log}, then `ups down` and `ups up`",
        )
    elif others:
        findings.fault(
            "this machine's", f"it does not run, but {', '.join(others)} does", "`ups up`"
        )
    else:
        findings.skip("this machine's", "it does not run", "`make up` starts it")
    return None


def _other_server(
    url: str, headers: dict[str, str], own: Stack | None, findings: Findings
) -> Server | None:
    client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
    fault, pools = _ask(client)
    if fault:
        client.close()
        findings.fault("this shell's", f"{url}: {fault[0]}", fault[1])
        return None
    findings.ok("this shell's", f"{url} answers")
    _compare_versions(client, findings)
    if own is not None:
        findings.warn(
            "two servers",
            f"`prefect` talks to {url}, `ups` to {own.api_url}",
            "unset PREFECT_API_URL for the one of this machine",
        )
    return Server(url, False, client, pools)


def _ask(client: httpx.Client) -> tuple[tuple[str, str] | None, dict[str, dict[str, Any]]]:
    """The work pools; or what is wrong, and the remedy."""
    try:
        answer = client.post("/work_pools/filter", json={})
        if answer.status_code in (401, 403):
            return (
                f"it wants a login (HTTP {answer.status_code})",
                "set PREFECT_API_AUTH_STRING (user:password) or PREFECT_API_KEY",
            ), {}
        pools = answer.raise_for_status().json()
        return None, {pool["name"]: pool for pool in pools}
    except httpx.HTTPStatusError as error:
        what = f"it answers HTTP {error.response.status_code}"
        return (what, "the address ends with /api: correct PREFECT_API_URL"), {}
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"no answer ({type(error).__name__}: {error})"
        return (
            what,
            "start that server, or name another; `prefect config view` says where this one stands",
        ), {}
    except (ValueError, KeyError, TypeError):
        what = "what answers there is not Prefect's API"
        return (what, "the address ends with /api: correct PREFECT_API_URL"), {}


def _compare_versions(client: httpx.Client, findings: Findings) -> None:
    """Prefect's on the server, where it says it, and here."""
    try:
        found = str(client.get("/admin/version").raise_for_status().json())
    except (httpx.HTTPError, ValueError):  # Prefect Cloud does not say
        return
    here = versions().get("prefect", "none")
    if found.split(".")[:2] == here.split(".")[:2]:
        findings.ok("its Prefect", found)
    else:
        remedy = "have both be the same: `make install` here, or that version there"
        findings.warn("its Prefect", f"{found}, and {here} is installed here", remedy)


def _examine_pools(server: Server, findings: Findings) -> None:
    """The deployments of `prefect.yaml`, and the pools that they go to."""
    wanted = deployment_names() if is_clone() else set()
    known = server.client.post("/deployments/filter", json={}).raise_for_status().json()
    ours = [one for one in known if one["name"] in wanted]
    missing = sorted(wanted - {one["name"] for one in ours})
    if server.is_own and missing:
        findings.fault("deployments", f"without {', '.join(missing)}", "`ups up` deploys them")
    elif not ours:
        findings.warn(
            "deployments", f"{server.url} has none of prefect.yaml's", "`prefect deploy --all`"
        )
    else:
        findings.ok("deployments", ", ".join(sorted(one["name"] for one in ours)))
    for name in sorted({one["work_pool_name"] for one in ours} - {None}):
        pool = server.pools.get(name)
        if pool is None:
            make = f"`prefect work-pool create --type process {name}`"
            findings.fault(name, "it is not there, and deployments go to it", make)
        elif pool["is_paused"]:
            resume = f"`prefect work-pool resume {name}`"
            findings.warn(name, f"type {pool['type']}, paused: runs wait", resume)
        else:
            findings.ok(name, f"type {pool['type']}")


def _examine_workers(server: Server, stack: Stack, findings: Findings) -> None:
    """Who serves the pools; one that nobody serves is no fault, unless it is the stack's own."""
    for name in sorted(POOLS.keys() & server.pools.keys()):
        is_ours = server.is_own and name == OWN_POOL
        online = api.online_workers(server.client, name)
        if is_ours and not stack.processes.running("worker"):  # the server notices after a while
            online = [one for one in online if one != api.WORKER_NAME]
        if online:
            findings.ok(name, f"{', '.join(online)} online")
        elif is_ours:
            _examine_own_worker(stack, findings)
        else:
            start = f"`prefect worker start --pool {name}` on the machine that is to run them"
            findings.skip(name, "no worker is online, and runs sent there wait", start)


def _examine_own_worker(stack: Stack, findings: Findings) -> None:
    """The stack's worker, of which no server has heard."""
    process = stack.processes.running("worker")
    others = [part for part in PARTS if part != "worker" and stack.processes.running(part)]
    log = stack.processes.log_path("worker")
    if process:
        what = f"it runs (pid {process.pid}), but no server hears of it"
        findings.fault(OWN_POOL, what, f"see {log}, then `ups down` and `ups up`")
    elif others:
        see = f"; what it said last is in {log}" if log.exists() else ""
        findings.fault(OWN_POOL, "this machine's worker does not run", f"`ups up` starts it{see}")
    else:
        findings.skip(OWN_POOL, "this machine's does not run", "`make up` starts it")
