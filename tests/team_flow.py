"""A light flow, deployed as training is: what it costs is what a run costs the servers."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tests.team import NUM_TASKS
from ups.equations import EQUATIONS
from ups.equations.initial_conditions import draw

NUM_LINES = 5  # of a task
log = logging.getLogger("ups.light")
log.setLevel(logging.INFO)


@task(task_run_name="{number} solve", cache_policy=NO_CACHE)
def solve(number: int) -> float:
    """Advect one wave over 64 points, with a line of log for each of some moments."""
    wave = draw(1, torch.Generator().manual_seed(number))
    moments = torch.linspace(0, 1, NUM_LINES, dtype=torch.float64)
    fields = EQUATIONS["advection1d"].solve(wave, 1.0, moments, 64)
    for moment, field in zip(moments, fields[0], strict=True):
        log.info("at %.2f s: largest value %.3f", moment, field.abs().max())
    return float(fields.abs().max())


@flow(name="light", flow_run_name="light {number}")
def light(number: int, folder: str, pause_s: float = 0.0) -> None:
    """Write down that it began, solve some waves with pauses, and show what came of it."""
    with (Path(folder) / "begun").open("a") as file:  # one write: lines of other runs stay whole
        file.write(f"{flow_run.id} {time.time()} {os.environ.get('UPS_STARTED')}\n")
    found = []
    for index in range(NUM_TASKS):
        found.append({"task": index, "largest": solve(index)})
        time.sleep(pause_s)
    create_table_artifact(found, key=f"light-{number}")
