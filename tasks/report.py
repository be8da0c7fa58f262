"""What the UI shows of a run: its startup and its training, while it trains and in the end."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from tasks.artifacts import Artifacts
from tasks.timeline import close_timeline, phase_task, timeline
from ups.background import Background
from ups.errors import UpsError
from ups.machine.processes import process_started_at
from ups.pipeline.overhead import break_down, draw, leave, leave_trace
from ups.pipeline.state import RunState
from ups.pipeline.training_page import training_page
from ups.runs.breakdown import Breakdown, Span
from ups.runs.record import describe_error
from ups.runs.table import Row, headline, startup_rows, to_markdown

log = logging.getLogger(__name__)

BOOT_BOUNDS = {
    "cold": "cold start: a new interpreter imports Prefect and the flow",
    "warm": "warm start: forked; Prefect's engine loads the flow and sets states",
    "in process": "in process: Prefect's engine sets states",
}
TRIGGERS = ("Scheduled", "AwaitingRetry")
TABLE, STARTUP, TRAINING = "overhead-breakdown", "overhead", "training"  # keys of artifacts
FIRST_PAUSES_S = (5.0, 10.0)  # between the first updates; later ones are rarer
EVERY_S = 20.0
MOST_SHARE = 0.05  # of the time this may compute, however long the curves are
SWITCH_S = 0.0005  # the interpreter's own is 0.005
END_S = 3.0  # for an update that is under way when the training ends


class Pages:
    """What the UI shows of a run, from its first step on.

    The training waits for none of it: a thread reads what the run leaves in its folder, and what
    fails there is a line in the log.
    """

    def __init__(self, run: RunState) -> None:
        self._run, self._artifacts = run, Artifacts()
        self._following: Background[None] | None = None
        self._is_over = threading.Event()
        self._knew_epoch_1: bool | None = None  # when the startup was shown; None: it was not

    def follow(self) -> None:
        """Show what is known, and again a few times a minute, until `finish`."""
        self._following = Background(self._follow, "pages of the run")

    def finish(self) -> Breakdown:
        """Write `breakdown.json` and `gantt.png`, and show all that the run has come to.

        The plan's metrics also go to `metrics.jsonl`.
        """
        self._is_over.set()
        if self._following is not None and not self._following.is_done(END_S):
            log.warning("the pages of the run are still being written: the server is slow")
        run = self._run
        breakdown = _break_down(run, close_timeline)
        gantt = leave(breakdown, run.run_dir)
        leave_trace(run, breakdown)
        predictions = run.scores.pictures if run.scores else {}
        self._show_startup(breakdown, to_markdown(breakdown, gantt, predictions), goes_on=False)
        if run.steps is not None:
            self._show_training(goes_on=False)
        return breakdown

    def _follow(self) -> None:
        is_failing = False
        for pause_s in itertools.chain(FIRST_PAUSES_S, itertools.repeat(EVERY_S)):
            began_s = time.thread_time()
            try:
                with _yielding():
                    self._show_so_far()
                is_failing = False
            except Exception as error:  # noqa: BLE001 (the training matters more than its picture)
                if not is_failing:
                    log.warning("the pages of the run are not up to date: %s", error)
                is_failing = True
            computed_s = time.thread_time() - began_s
            if self._is_over.wait(max(pause_s, computed_s / MOST_SHARE)):
                return

    def _show_so_far(self) -> None:
        knows_epoch_1 = self._run.result is not None
        if self._knew_epoch_1 != knows_epoch_1:
            breakdown = _break_down(self._run, timeline)
            markdown = to_markdown(breakdown, draw(breakdown))
            if self._is_over.is_set():
                return
            breakdown.save(self._run.run_dir)  # which `ups runs list` reads
            if self._knew_epoch_1 is None:
                leave_trace(self._run, breakdown)
            self._show_startup(breakdown, markdown, goes_on=True)
            self._knew_epoch_1 = knows_epoch_1
        self._show_training(goes_on=True)

    def _show_startup(self, breakdown: Breakdown, markdown: str, *, goes_on: bool) -> None:
        title = headline(breakdown)
        self._show(TABLE, title, startup_rows(breakdown), goes_on=goes_on)
        self._show(STARTUP, title, markdown, goes_on=goes_on)

    def _show_training(self, *, goes_on: bool) -> None:
        title, markdown = training_page(self._run, time.time(), goes_on=goes_on)
        self._show(TRAINING, title, markdown, goes_on=goes_on)

    def _show(self, key: str, title: str, content: str | list[Row], *, goes_on: bool) -> None:
        if not (goes_on and self._is_over.is_set()):  # it would hide what came of the run
            self._artifacts.show(key, title, content)


@contextmanager
def _yielding() -> Iterator[None]:
    """Hand the interpreter's lock over soon: a step asks for it many times.

    A step of 64 ms took 162 beside a thread that draws, and 118 so (medians, alternated blocks).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@phase_task("report", task_run_name="6 report-overhead")
def report_overhead(pages: Pages) -> Breakdown:
    """Leave the breakdown in the run's folder, and publish it in full."""
    return pages.finish()


def show_refusal(name: str, error: UpsError) -> None:
    """What the UI shows of a run that is refused before it has so much as a folder."""
    title = f"{name}: refused before anything was done"
    Artifacts().show(STARTUP, title, f"## {title}\n\n**Failed:** {describe_error(error)}")


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
