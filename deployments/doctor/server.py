"""The Prefect servers that this machine talks to, their pools, deployments and workers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deployments import prefect_api as api
from deployments.deploy import flow_name
from deployments.doctor.findings import Finding, Findings
from deployments.layout import Stack, is_clone
from deployments.servers import TIMEOUT_S, NamedServer, ServerFault, ask_for_pools, named_server
from deployments.stack import PARTS, deployment_names, prefect_yaml
from ups.machine.host import versions

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
    named = _named_server(server)
    own = _own_server(stack, named, server)
    if named is None and own is not None:
        server.warn(
            "this shell",
            f"`prefect` knows no server in {Path.cwd()}",
            f"work in {stack.prefect_toml.parent}, or `export PREFECT_API_URL={stack.api_url}`",
        )
    other = None
    if named is not None and named.url != stack.api_url:
        other = _other_server(named, stack if own else None, server)
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


def _named_server(findings: Findings) -> NamedServer | None:
    try:
        return named_server()
    except ServerFault as fault:
        findings.fault("settings", fault.what, fault.remedy)
        return None


def _own_server(stack: Stack, named: NamedServer | None, findings: Findings) -> Server | None:
    process = stack.processes.running("prefect-server")
    if named and named.url == stack.api_url and not stack.login:  # a person may have started it
        client = named.client()
    else:
        client = stack.client(TIMEOUT_S)
    try:
        pools = ask_for_pools(client)
    except ServerFault as error:
        fault = error
        client.close()
    else:
        by = f"pid {process.pid}" if process else "not started by `ups up`"
        findings.ok("this machine's", f"{stack.ui_url} answers ({by})")
        _compare_versions(client, findings)
        return Server(stack.api_url, True, client, pools)
    others = [part for part in PARTS if stack.processes.running(part)]
    if process:
        log = stack.processes.log_path("prefect-server")
        findings.fault(
            "this machine's",
            f"{stack.api_url} (pid {process.pid}): {fault.what}",
            f"see {log}, then `ups down` and `ups up`",
        )
    elif others:
        findings.fault(
            "this machine's", f"it does not run, but {', '.join(others)} does", "`ups up`"
        )
    else:
        findings.skip("this machine's", "it does not run", "`make up` starts it")
    return None


def _other_server(named: NamedServer, own: Stack | None, findings: Findings) -> Server | None:
    client = named.client()
    try:
        pools = ask_for_pools(client)
    except ServerFault as fault:
        client.close()
        findings.fault("this shell's", f"{named.shown}: {fault.what}", fault.remedy)
        return None
    findings.ok("this shell's", f"{named.shown} answers")
    _compare_versions(client, findings)
    if own is not None:
        findings.warn(
            "two servers",
            f"`prefect` talks to {named.shown}, `ups` to {own.api_url}",
            "unset PREFECT_API_URL for the one of this machine",
        )
    return Server(named.shown, False, client, pools)


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
    wanted = deployment_names() if is_clone() else set()  # on the stack; elsewhere also others
    known = server.client.post("/deployments/filter", json={}).raise_for_status().json()
    ours = [one for one in known if _plain_name(one) in wanted]
    missing = sorted(wanted - {one["name"] for one in ours})
    if server.is_own and missing:
        findings.fault("deployments", f"without {', '.join(missing)}", "`ups up` deploys them")
    elif not ours:
        findings.warn(
            "deployments", f"{server.url} has none of prefect.yaml's", "`ups deploy --pool NAME`"
        )
    else:
        findings.ok("deployments", ", ".join(sorted(one["name"] for one in ours)))
    if server.is_own and is_clone():
        _examine_unserved(server, known, findings)
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


def _examine_unserved(
    server: Server, known: Sequence[Mapping[str, Any]], findings: Findings
) -> None:
    """Those that an earlier `ups up` registered, too, and that stand Not Ready ever since.

    A person may have asked for the same ones and have switched their worker off: they are named,
    and nobody deletes them.
    """
    listed = {one["name"]: one for one in prefect_yaml()["deployments"]}
    for one in known:
        as_listed = listed.get(one["name"])
        if as_listed is None or one["name"] in deployment_names():
            continue
        pool = one["work_pool_name"]
        ours = (as_listed["entrypoint"], as_listed["work_pool"]["name"])
        if (one.get("entrypoint"), pool) != ours or pool not in server.pools:
            continue
        if not api.online_workers(server.client, pool):
            name = f"{flow_name(as_listed)}/{one['name']}"
            what = f"nobody serves its pool {pool}, so the UI has it as Not Ready"
            findings.skip(name, what, f"if it is not wanted, `prefect deployment delete {name}`")


def _plain_name(deployment: Mapping[str, Any]) -> str:
    """Its name in `prefect.yaml`: `ups deploy --queue` ends it with the queue's."""
    return str(deployment["name"]).removesuffix(f"-{deployment.get('work_queue_name')}")


def _pools_of_prefect_yaml() -> set[str]:
    found = prefect_yaml()["deployments"] if is_clone() else []
    return {each["work_pool"]["name"] for each in found}


def _examine_workers(server: Server, stack: Stack, findings: Findings) -> None:
    """Who serves the pools; one that nobody serves is no fault, unless it is the stack's own."""
    for name in sorted(_pools_of_prefect_yaml() & server.pools.keys()):
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
