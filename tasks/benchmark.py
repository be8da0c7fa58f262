"""The steps of `benchmark-startup`: inputs, bounds, a run of a scenario, and the report."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from prefect.utilities.urls import url_for
from pydantic_core import to_json

from ups.config import RunConfig
from ups.errors import BenchmarkError
from ups.machine import page_cache
from ups.runs.index import breakdown_of
from ups.startup.judge.compare import Comparison
from ups.startup.measure.bounds import Rates, measure
from ups.startup.measure.prepare import prepare, tidy, touch_memory_of_run
from ups.startup.measure.records import RunRecord
from ups.startup.measure.scenarios import Scenario
from ups.startup.show import tables
from ups.startup.show.markdown import to_markdown
from ups.startup.show.pictures import draw
from ups.startup.show.wording import headline

log = logging.getLogger("ups.benchmark")

DEPLOYMENT = "train-burgers/benchmark"
POLL_S = 1.0  # faster polling makes SQLite refuse writes
RUN_TIMEOUT_S = 900.0
PLAIN = {"cache_policy": NO_CACHE, "persist_result": False}


@task(task_run_name="1 inputs", **PLAIN)
def make_inputs(config: RunConfig) -> None:
    """Put the objects into the store, where it has none: made once, outside the clock."""
    from ups.data.seed import seed

    seed(config, lambda seconds, what: log.info("%s (%.1f s)", what, seconds))


@task(task_run_name="2 bounds", **PLAIN)
def measure_bounds(config: RunConfig, folder: Path, cache: page_cache.PageCache) -> Rates:
    """Measure what this machine can do at most."""
    rates = measure(config, folder, cache)
    log.info(
        "bounds: store %.0f MB/s, write + fsync %.0f MB/s, read %.0f MB/s",
        rates.store / 1e6,
        rates.write / 1e6,
        rates.read / 1e6,
    )
    return rates


@task(task_run_name="3 prepare [{scenario.name}]", **PLAIN)
def prepare_scenario(
    scenario: Scenario, config: RunConfig, cache: page_cache.PageCache, stop: threading.Event
) -> bool:
    """Have what the run is to find; returns whether it will find all."""
    is_prepared = prepare(scenario, config, stop)
    if cache == "dropped":
        found = (config.data_root, config.training.latent_cache_dir)
        log.info("page cache dropped: %s", page_cache.drop(*found))
    else:
        os.sync()  # what is left to write back would disturb what is measured next
    log.info("touched %.0f MB of memory", touch_memory_of_run(config) / 1e6)
    return is_prepared


def run_scenario(
    scenario: Scenario, name: str, config: str, overrides: Mapping[str, Any]
) -> FlowRun:
    """Trigger a run as a user would, over the API, and wait until it has ended.

    A benchmark that is stopped meanwhile takes its run along.

    Args:
        name: in the benchmark's timeline.
    Raises:
        BenchmarkError: there is no deployment, the run did not end in time, or it failed.
    """
    try:
        run = run_deployment(
            DEPLOYMENT,
            parameters={"config": config, "overrides": dict(overrides)},
            job_variables={"env": scenario.env} if scenario.env else None,
            tags=["benchmark", scenario.name],
            timeout=0,
        )
    except ObjectNotFound:
        raise BenchmarkError(
            f"no deployment {DEPLOYMENT}: register it with `prefect deploy --all`, or run `ups up`"
        ) from None
    with get_client(sync_client=True) as client:
        try:
            if run.parent_task_run_id is not None:
                client.set_task_run_name(run.parent_task_run_id, name)
            run = _wait(client, run)
        except BaseException:  # a cancelled benchmark, too: nobody else would stop its run
            client.set_flow_run_state(run.id, Cancelling(message="its benchmark was stopped"))
            raise
    assert run.state is not None
    if not run.state.is_completed():
        raise BenchmarkError(
            f"{scenario.name}: its run ended {run.state.name}: {run.state.message or 'no message'}"
            f"; see {link(str(run.id))}"
        )
    return run


def _wait(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while run.state is None or not run.state.is_final():
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"{link(str(run.id))} did not end in {RUN_TIMEOUT_S:.0f} s, and was cancelled"
            )
        time.sleep(POLL_S)
        run = client.read_flow_run(run.id)
    return run


def read_record(
    scenario: Scenario,
    repeat: int,
    run: FlowRun,
    config: RunConfig,
    rates: Rates,
    busy_cores: float,
) -> RunRecord:
    """What the run's `breakdown.json` says; what of earlier runs nobody needs is removed.

    Raises:
        BenchmarkError: it left none, or took no step.
    """
    run_id = str(run.id)
    breakdown = breakdown_of(config.runs_dir, run.id)
    if breakdown is None:
        raise BenchmarkError(
            f"{scenario.name}: no readable breakdown.json of {link(run_id)} in {config.runs_dir}. "
            "The worker of its pool must be on the machine of the benchmark"
        )
    tidy(config.runs_dir)
    if breakdown.ttfs_s is None:
        raise BenchmarkError(
            f"{scenario.name}: {link(run_id)} took no optimizer step: its log says why"
        )
    return RunRecord.of(
        breakdown,
        scenario=scenario.name,
        repeat=repeat,
        flow_run_id=run_id,
        bounds_s=rates.bounds_s(breakdown.phase_bytes),
        busy_cores=busy_cores,
    )


@task(task_run_name="5 report-benchmark", **PLAIN)
def publish(comparison: Comparison, folder: Path) -> None:
    """Write the comparison and its pictures into the folder, and show them in the UI."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(comparison)
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    data = to_json(comparison, indent=1, inf_nan_mode="null")
    (folder / "comparison.json").write_bytes(data)
    markdown = to_markdown(comparison, pictures, link)
    (folder / "comparison.md").write_text(markdown)
    title = headline(comparison)
    create_markdown_artifact(key="benchmark-startup", markdown=markdown, description=title)
    rows = {
        "startup-times": tables.comparison_rows(comparison),
        "startup-shares": tables.share_rows(comparison),
        "startup-criteria": tables.criteria_rows(comparison.criteria),
    }
    for key, table in rows.items():
        if table:
            create_table_artifact(key=key, table=table, description=title)


def link(flow_run_id: str) -> str:
    """Where the UI shows a run."""
    return url_for("flow-run", obj_id=UUID(flow_run_id)) or f"/runs/flow-run/{flow_run_id}"
