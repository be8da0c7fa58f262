"""`report-overhead`: the breakdown of a run as artifacts that a person reads at a glance."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from tasks.timeline import close_timeline, phase_task
from ups.machine.processes import process_started_at
from ups.pipeline.overhead import break_down, leave
from ups.pipeline.state import RunState
from ups.runs.breakdown import Breakdown, Span
from ups.runs.table import headline, startup_rows, to_markdown

BOOT_BOUNDS = {
    "cold": "cold start: a new interpreter imports Prefect and the flow",
    "warm": "warm start: forked; Prefect's engine loads the flow and sets states",
    "in process": "in process: Prefect's engine sets states",
}
TRIGGERS = ("Scheduled", "AwaitingRetry")


@phase_task("report", task_run_name="6 report-overhead")
def report_overhead(run: RunState) -> Breakdown:
    """Write `breakdown.json` and `gantt.png`, and publish both in the UI.

    The plan's metrics also go to `metrics.jsonl`.
    """
    assert run.flow_run_id is not None, "the run is one of Prefect's"
    breakdown = _break_down(run, run.flow_run_id)
    gantt = leave(breakdown, run.run_dir)
    title = headline(breakdown)
    table = [dict(row) for row in startup_rows(breakdown)]
    create_table_artifact(key="overhead-breakdown", table=table, description=title)
    predictions = run.scores.pictures if run.scores else {}
    markdown = to_markdown(breakdown, gantt, predictions)
    create_markdown_artifact(key="overhead", markdown=markdown, description=title)
    return breakdown


def _break_down(run: RunState, flow_run_id: UUID) -> Breakdown:
    with get_client(sync_client=True) as client:
        expected_start = client.read_flow_run(flow_run_id).expected_start_time
        states = client.read_flow_run_states(flow_run_id)
    states.sort(key=lambda state: state.timestamp)
    triggered_at = _trigger_time(states, expected_start)
    spans = [span for span in close_timeline(flow_run_id) if span.phase != "report"]
    process_at = _process_start(states, triggered_at)
    first_task_at = spans[0].start if spans else time.time()
    spans = [
        Span(phase="queue", name="queue", start=triggered_at, end=process_at),
        Span(phase="boot", name="boot", start=process_at, end=max(process_at, first_task_at)),
        *spans,
    ]
    start_mode = os.environ.get("UPS_STARTED", "in process")
    return break_down(
        run,
        spans,
        triggered_at=triggered_at,
        start_mode=start_mode,
        bounds={
            "queue": "another run of this deployment, which ran first"
            if any(state.name == "AwaitingConcurrencySlot" for state in states)
            else "worker notices the run, starts a process",
            "boot": BOOT_BOUNDS[start_mode],
            "warm-up": "import torch where it is not yet, build and warm the model",
        },
    )


def _trigger_time(states: Sequence[State], expected_start: datetime | None) -> float:
    """The latest Scheduled or AwaitingRetry state, or the expected start if that is later."""
    triggers = [state for state in states if state.name in TRIGGERS] or list(states[:1])
    at: float = triggers[-1].timestamp.timestamp()
    return max(at, expected_start.timestamp()) if expected_start else at


def _process_start(states: Sequence[State], triggered_at: float) -> float:
    """When this process started; when the flow began to run, in a process older than the run."""
    started = process_started_at()
    if started >= triggered_at:
        return started
    running = [s.timestamp.timestamp() for s in states if s.is_running()]
    return max(triggered_at, running[-1]) if running else triggered_at
