"""Runs of the flow on a Prefect server of our own, with data in a real S3 store."""

from __future__ import annotations

import json
import time

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)

from flows.train_burgers import train_burgers
from ups.config import dump_config
from ups.runs.folder import find_run_dir


@pytest.fixture
def flow_config(prefect_server, store_env, bucket_sources, tiny_config, tmp_path, monkeypatch):
    """`flow_config(**overrides)`: the path of a config whose splits are objects in the store."""
    monkeypatch.chdir(tmp_path)

    def write(**overrides: object) -> str:
        given = {"data__sources": bucket_sources, "data__root": str(tmp_path / "staged")}
        path = tmp_path / "tiny.yaml"
        path.write_text(dump_config(tiny_config(**{**given, **overrides})))
        return str(path)

    return write


@pytest.fixture
def run(tmp_path):
    """`run(config, **parameters)`: the final state, task runs by name, and the breakdown."""

    def start(config, flow=train_burgers, **parameters):
        state = flow(config, return_state=True, **parameters)
        run_id = state.state_details.flow_run_id
        folder = find_run_dir(tmp_path / "runs", run_id)
        path = folder and folder / "breakdown.json"
        breakdown = json.loads(path.read_text()) if path and path.exists() else None
        return state, task_runs(run_id), breakdown

    return start


def task_runs(run_id):
    """Names and states of a flow run's tasks, when the API has caught up."""
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    deadline = time.monotonic() + 10
    while True:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=only)
        is_final = runs and all(run.state and run.state.is_final() for run in runs)
        if is_final or time.monotonic() > deadline:
            return {run.name: run.state.name for run in runs}
        time.sleep(0.2)


@pytest.fixture
def shown():
    """`shown(state)`: the name of a flow run, and its artifacts by their key."""

    def read(state):
        run_id = state.state_details.flow_run_id
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=only)
            return client.read_flow_run(run_id).name, {a.key: a.data for a in found}

    return read
