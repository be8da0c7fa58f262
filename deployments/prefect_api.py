"""The few calls to Prefect's HTTP API that the stack needs.

Plain HTTP instead of Prefect's client: importing `prefect` takes longer than all of these calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from deployments.pools import PoolKind, job_template
from ups.vast.server import authorization as authorization

WORKER_NAME = "ups-local"


def is_ready(client: httpx.Client) -> bool:
    """Whether the server answers, and its database is there."""
    try:
        return client.get("/ready").status_code == 200
    except httpx.HTTPError:
        return False


def create_pool(
    client: httpx.Client, name: str, description: str, kind: PoolKind = "process"
) -> bool:
    """Create a work pool; False if there is one of that name, of whatever kind."""
    if client.get(f"/work_pools/{name}").status_code == 200:
        return False
    pool = {"name": name, "type": kind, "description": description}
    response = client.post("/work_pools/", json={**pool, "base_job_template": job_template(kind)})
    if response.status_code == 409:
        return False
    _json(response)
    return True


def delete_pool(client: httpx.Client, name: str) -> None:
    client.delete(f"/work_pools/{name}").raise_for_status()


def delete_deployment(client: httpx.Client, deployment_id: str) -> None:
    client.delete(f"/deployments/{deployment_id}").raise_for_status()


def create_queue(client: httpx.Client, pool: str, name: str, priority: int | None = None) -> bool:
    """Create a work queue in a pool; False if it is there, which then gets the priority."""
    given = {} if priority is None else {"priority": priority}
    response = client.post(f"/work_pools/{pool}/queues", json={"name": name, **given})
    if response.status_code != 409:
        _json(response)
        return True
    if given:
        client.patch(f"/work_pools/{pool}/queues/{name}", json=given).raise_for_status()
    return False


def delete_queue(client: httpx.Client, pool: str, name: str) -> None:
    client.delete(f"/work_pools/{pool}/queues/{name}").raise_for_status()


def queue_names(client: httpx.Client, pool: str) -> set[str]:
    """The names of a pool's work queues."""
    return {queue["name"] for queue in _json(client.post(f"/work_pools/{pool}/queues/filter"))}


def find_deployment(client: httpx.Client, name: str) -> str | None:
    """The id of `<flow>/<deployment>`; None if there is none of that name."""
    found = read_deployment(client, name)
    return None if found is None else str(found["id"])


def read_deployment(client: httpx.Client, name: str) -> dict[str, Any] | None:
    """What the server has as `<flow>/<deployment>`; None if there is none of that name."""
    response = client.get(f"/deployments/name/{name}")
    return None if response.status_code == 404 else _json(response)


def create_run(
    client: httpx.Client,
    deployment_id: str,
    parameters: dict[str, Any],
    queue: str | None = None,
    key: str | None = None,
    *,
    name: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Trigger a deployment; returns the flow run's id.

    Args:
        queue: for the workers that serve it alone; None: the deployment's.
        key: asking again with the same one gives the same run.
        name: of the run, until it begins.
    """
    given = {"work_queue_name": queue, "idempotency_key": key, "name": name}
    body = {"parameters": parameters, "tags": list(tags)}
    body |= {field: value for field, value in given.items() if value is not None}
    return str(_json(client.post(f"/deployments/{deployment_id}/create_flow_run", json=body))["id"])


def forget_worker(client: httpx.Client, pool: str, name: str) -> None:
    """Delete the record of a worker that is gone, so that its last heartbeat misleads nobody."""
    response = client.delete(f"/work_pools/{pool}/workers/{name}")
    if response.status_code != 404:
        response.raise_for_status()


def worker_is_online(
    client: httpx.Client, pool: str, after: float = 0.0, name: str = WORKER_NAME
) -> bool:
    """Whether the worker reported after a Unix time: the record of an earlier one may linger."""
    for worker in _workers(client, pool):
        last = worker["last_heartbeat_time"]
        if worker["name"] == name and last and worker["status"] == "ONLINE":
            return datetime.fromisoformat(last).timestamp() >= after
    return False


def other_workers(client: httpx.Client, pool: str) -> list[str]:
    """The names of the pool's workers that are online, without the stack's own."""
    return [name for name in online_workers(client, pool) if name != WORKER_NAME]


def online_workers(client: httpx.Client, pool: str) -> list[str]:
    """The names of the pool's workers that are online."""
    return [worker["name"] for worker in _workers(client, pool) if worker["status"] == "ONLINE"]


def deployment_names(client: httpx.Client) -> set[str]:
    return {d["name"] for d in _json(client.post("/deployments/filter", json={}))}


def end_runs(client: httpx.Client, pool: str, message: str) -> list[str]:
    """Mark the pool's runs that are under way as Crashed, or as Cancelled where that was asked for.

    Returns:
        Their names.
    """
    under_way = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    where = {"flow_runs": under_way, "work_pools": {"name": {"any_": [pool]}}}
    runs = _json(client.post("/flow_runs/filter", json=where))
    for run in runs:
        is_cancelling = run["state_type"] == "CANCELLING"
        _end_run(client, run["id"], "Cancelled" if is_cancelling else "Crashed", message)
    return [run["name"] for run in runs]


def crash_run(client: httpx.Client, run_id: str, message: str) -> None:
    """Mark a run as Crashed, whatever state it is in."""
    _end_run(client, run_id, "Crashed", message)


def cancel_run(client: httpx.Client, run_id: str, message: str) -> bool:
    """Cancel a run; whether the server agreed.

    One that has not begun is cancelled at once: the server sees to that, for it may just begin.
    """
    state = {"type": "CANCELLING", "name": "Cancelling", "message": message}
    answer = _json(client.post(f"/flow_runs/{run_id}/set_state", json={"state": state}))
    return (answer["state"] or {}).get("type") in ("CANCELLED", "CANCELLING")


def _end_run(client: httpx.Client, run_id: str, name: str, message: str) -> None:
    state = {"type": name.upper(), "name": name, "message": message}
    _json(client.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": True}))


def read_run(client: httpx.Client, run_id: str) -> dict[str, Any]:
    return _json(client.get(f"/flow_runs/{run_id}"))


def read_tagged(client: httpx.Client, tag: str) -> list[dict[str, Any]]:
    """Up to 200 flow runs with a tag, in the order in which they are to start."""
    where = {"flow_runs": {"tags": {"all_": [tag]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return _json(client.post("/flow_runs/filter", json=where))


def task_runs(client: httpx.Client, run_id: str) -> list[dict[str, Any]]:
    """What the server says of a flow run's tasks, in the order of their start."""
    where = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return _json(client.post("/task_runs/filter", json=where))


def logs(client: httpx.Client, run_id: str, after: datetime) -> list[dict[str, Any]]:
    """Up to 200 log records of a flow run and its tasks, written after `after`."""
    where = {"flow_run_id": {"any_": [run_id]}, "timestamp": {"after_": after.isoformat()}}
    return _json(client.post("/logs/filter", json={"logs": where, "sort": "TIMESTAMP_ASC"}))


def _workers(client: httpx.Client, pool: str) -> list[dict[str, Any]]:
    return _json(client.post(f"/work_pools/{pool}/workers/filter", json={}))


def _json(response: httpx.Response) -> Any:
    return response.raise_for_status().json()
