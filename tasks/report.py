"""`report-overhead`: the breakdown of a run as artifacts that a person reads at a glance."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import State

from tasks.timeline import close_timeline, phase_task, timeline
from ups.background import Background
from ups.machine.processes import process_started_at
from ups.pipeline.overhead import break_down, leave
from ups.pipeline.state import RunState
from ups.runs.breakdown import Breakdown, Span
from ups.runs.table import headline, startup_rows, to_markdown

log = logging.getLogger(__name__)

BOOT_BOUNDS = {
    "cold": "cold start: a new interpreter imports Prefect and the flow",
    "warm": "warm start: forked; Prefect's engine loads the flow and sets states",
    "in process": "in process: Prefect's engine sets states",
}
TRIGGERS = ("Scheduled", "AwaitingRetry")
TABLE, PAGE = "overhead-breakdown", "overhead"  # keys of artifacts


class ShownOverhead:
    """The breakdown of a run in the UI: from its first step on, and in full at its end."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self._shown: Background[dict[str, UUID]] | None = None

    def show_first_step(self) -> None:
        """Publish it as far as it is known, without a picture, beside the training."""
        self._shown = Background(self._publish_so_far, "show the startup")

    def finish(self) -> Breakdown:
        """Write `breakdown.json` and `gantt.png`, and have the UI show both.

        The plan's metrics also go to `metrics.jsonl`.
        """
        run = self._run
        breakdown = _break_down(run, close_timeline)
        gantt = leave(breakdown, run.run_dir)
        predictions = run.scores.pictures if run.scores else {}
        self._publish(breakdown, to_markdown(breakdown, gantt, predictions), self._so_far())
        return breakdown

    def _publish_so_far(self) -> dict[str, UUID]:
        breakdown = _break_down(self._run, timeline)
        return self._publish(breakdown, to_markdown(breakdown), {})

    def _so_far(self) -> dict[str, UUID]:
        """What stands in the UI already; nothing where that could not be published."""
        if self._shown is None:
            return {}
        if (error := self._shown.error()) is not None:
            log.warning("the startup could not be shown at the first step: %s", error)
            return {}
        return self._shown.result()

    def _publish(
        self, breakdown: Breakdown, markdown: str, shown: dict[str, UUID]
    ) -> dict[str, UUID]:
        """Create the artifacts, or change those that are shown; returns which they are."""
        title, rows = headline(breakdown), [dict(row) for row in startup_rows(breakdown)]
        if shown:
            with get_client(sync_client=True) as client:
                for name, content in ((TABLE, json.dumps(rows)), (PAGE, markdown)):
                    update = ArtifactUpdate(data=content, description=title)
                    client.update_artifact(shown[name], update)
            return shown
        return {
            TABLE: create_table_artifact(key=TABLE, table=rows, description=title),
            PAGE: create_markdown_artifact(key=PAGE, markdown=markdown, description=title),
        }


@phase_task("report", task_run_name="6 report-overhead")
def report_overhead(shown: ShownOverhead) -> Breakdown:
    """Leave the breakdown in the run's folder, and publish it in full."""
    return shown.finish()


def _break_down(run: RunState, spans_of: Callable[[UUID], list[Span]]) -> Breakdown:
    assert run.flow_run_id is not None, "the run is one of Prefect's"
    flow_run_id = run.flow_run_id
    with get_client(sync_client=True) as client:
        expected_start = client.read_flow_run(flow_run_id).expected_start_time
        states = client.read_flow_run_states(flow_run_id)
    states.sort(key=lambda state: state.timestamp)
    triggered_at = _trigger_time(states, expected_start)
    spans = [span for span in spans_of(flow_run_id) if span.phase != "report"]
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
