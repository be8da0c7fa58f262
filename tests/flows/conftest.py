"""Runs of the flow on a Prefect server of our own, with data in a real S3 store."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

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


@pytest.fixture(scope="session")
def first_run(prefect_server, s3, bucket_sources, write_tiny, tmp_path_factory):
    """A run that found nothing: its state, its breakdown, its folder, and what it left there.

    `flow_config(**first_run.found)` finds its files and its entry, which a test leaves valid.
    """
    folder = tmp_path_factory.mktemp("first-run")
    found = {
        "data__root": str(folder / "staged"),
        "training__latent_cache_dir": str(folder / "cache"),
    }
    given = {"data__generate": None, "data__sources": bucket_sources, **found}
    given["evaluation__num_examples"] = 1
    path = write_tiny(folder / "tiny.yaml", runs_dir=str(folder / "runs"), **given)
    with s3.used(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        state = train_burgers(str(path), return_state=True)
    assert state.is_completed(), state.message
    breakdown = read_breakdown(folder, state)
    return SimpleNamespace(state=state, breakdown=breakdown, folder=folder, found=found)


@pytest.fixture
def run(tmp_path):
    """`run(config, **parameters)`: the final state, task runs by name, and the breakdown."""

    def start(config, flow=train_burgers, **parameters):
        state = flow(config, return_state=True, **parameters)
        run_id = state.state_details.flow_run_id
        return state, task_runs(run_id), read_breakdown(tmp_path, state)

    return start


def read_breakdown(folder, state):
    """Of the run in `folder` that ended so; None where it left none."""
    run_dir = find_run_dir(folder / "runs", state.state_details.flow_run_id)
    path = run_dir and run_dir / "breakdown.json"
    return json.loads(path.read_text()) if path and path.exists() else None


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
def task_states():
    """`task_states(state)`: the states of a flow run's tasks, by their names."""

    def read(state):
        only = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        with get_client(sync_client=True) as client:
            return {run.name: run.state for run in client.read_task_runs(flow_run_filter=only)}

    return read


@pytest.fixture
def artifacts():
    """`artifacts(run_id)`: what a flow run shows under each key, of which there is one."""

    def read(run_id):
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=only)
        assert len({artifact.key for artifact in found}) == len(found)
        return {artifact.key: artifact.data for artifact in found}

    return read


@pytest.fixture
def shown(artifacts):
    """`shown(state)`: the name of a flow run, and its artifacts by their key."""

    def read(state):
        run_id = state.state_details.flow_run_id
        with get_client(sync_client=True) as client:
            name = client.read_flow_run(run_id).name
        return name, artifacts(run_id)

    return read
