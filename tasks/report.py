"""`report-overhead`: the breakdown of a run as artifacts that a person reads at a glance."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from tasks.timeline import close_timeline, phase_task
from ups.telemetry.breakdown import break_down, headline, leave
from ups.telemetry.gpu import GpuUse, in_words
from ups.telemetry.phases import STOPPED, Breakdown, Span, TaskFigures
from ups.telemetry.process import process_started_at
from ups.telemetry.story import Story as RunStory

log = logging.getLogger(__name__)

BOOT_BOUNDS = {
    "cold": "cold start: a new interpreter imports Prefect and the flow",
    "warm": "warm start: forked; Prefect's engine loads the flow and sets states",
    "in process": "in process: Prefect's engine sets states",
}
TRIGGERS = ("Scheduled", "AwaitingRetry")


@dataclass(slots=True, kw_only=True)
class Story(RunStory):
    """
    Attributes:
        overwrite_cache: build each cache entry once in this run, although it is there.
    """

    flow_run_id: UUID
    overwrite_cache: bool = False


@phase_task("report", task_run_name="6 report-overhead")
def report_overhead(story: Story) -> Breakdown:
    """Write `breakdown.json` and `gantt.png`, and publish both in the UI.

    The plan's metrics also go to `metrics.jsonl`.
    """
    breakdown = _break_down(story)
    gantt = leave(breakdown, story.run_dir)
    create_table_artifact(
        key="overhead-breakdown",
        table=[
            {
                "phase": row.phase,
                "seconds": f"{row.seconds:.2f}",
                "share": "" if row.share is None else f"{row.share:.0%}",
                "what bounds it": row.bound,
            }
            for row in breakdown.phases
        ]
        + [
            {
                "phase": "GPU",
                "seconds": "",
                "share": "",
                "what bounds it": in_words(breakdown.gpu, breakdown.gpu_note),
            }
        ],
        description=headline(breakdown),
    )
    pictures = story.scores.pictures if story.scores else {}
    create_markdown_artifact(
        key="overhead",
        markdown=_markdown(breakdown, gantt, pictures),
        description=headline(breakdown),
    )
    return breakdown


def _break_down(story: Story) -> Breakdown:
    states, expected_start = _flow_run_states(story.flow_run_id)
    triggered_at = _trigger_time(states, expected_start)
    spans = [s for s in close_timeline(story.flow_run_id) if s.phase != "report"]
    process_at = _process_start(states, triggered_at)
    first_task_at = spans[0].start if spans else time.time()
    spans = [
        Span(phase="queue", name="queue", start=triggered_at, end=process_at),
        Span(phase="boot", name="boot", start=process_at, end=max(process_at, first_task_at)),
        *spans,
    ]
    return break_down(
        story,
        spans,
        triggered_at=triggered_at,
        start_mode=os.environ.get("UPS_STARTED", "in process"),
        bounds=_bounds(states),
    )


def _flow_run_states(flow_run_id: UUID) -> tuple[list[State], datetime | None]:
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        states = client.read_flow_run_states(flow_run_id)
    return sorted(states, key=lambda state: state.timestamp), flow_run.expected_start_time


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


def _bounds(states: Sequence[State]) -> dict[str, str]:
    waited = any(state.name == "AwaitingConcurrencySlot" for state in states)
    return {
        "queue": "another run of this deployment, which ran first"
        if waited
        else "worker notices the run, starts a process",
        "boot": BOOT_BOUNDS[os.environ.get("UPS_STARTED", "in process")],
        "warm-up": "import torch where it is not yet, build and warm the model",
    }


def _markdown(breakdown: Breakdown, gantt: bytes, pictures: Mapping[str, Path]) -> str:
    lines = [f"## {headline(breakdown)}", ""]
    if breakdown.failed:
        label = "Stopped" if breakdown.failed == STOPPED else "Failed"
        lines += [f"**{label}:** {breakdown.failed}", ""]
    lines += [_image("phases up to the first step", gantt), ""]
    lines += ["| phase | seconds | share | what bounds it |", "|:--|--:|--:|:--|"]
    lines += [
        f"| {row.phase} | {row.seconds:.2f} | {'' if row.share is None else f'{row.share:.0%}'} "
        f"| {row.bound} |"
        for row in breakdown.phases
    ]
    lines += ["", "Phases overlap: shares may add up to more than 100 %.", ""]
    if breakdown.config_hash and not breakdown.tasks:
        lines.append(f"- cache entry `{breakdown.config_hash}`, {_cache_story(breakdown)}")
    lines.append(f"- run folder `{breakdown.run}`")
    if breakdown.nrmse_rollout is not None:
        lines.append(
            f"- test nRMSE over the full rollout **{breakdown.nrmse_rollout:.4f}**, "
            f"persistence {breakdown.nrmse_persistence:.4f}"
            + (", the means over the tasks" if breakdown.tasks else "")
        )
    lines.append(f"- GPU: {in_words(breakdown.gpu, breakdown.gpu_note)}")
    lines += _gpu_table(breakdown.gpu or {})
    lines += _task_table(breakdown.tasks)
    for title, picture in pictures.items():
        lines += ["", *([f"**{title}**", ""] if breakdown.tasks else [])]
        lines += [_image("truth, prediction and error", picture.read_bytes())]
    return "\n".join(lines)


def _task_table(tasks: Mapping[str, TaskFigures]) -> list[str]:
    if not tasks:
        return []
    rows = []
    for name, task in tasks.items():
        cache = {None: "", True: "reused", False: "built"}[task.cache_reused]
        scores = [task.nrmse_rollout, task.nrmse_persistence]
        texts = ["" if score is None else f"{score:.4f}" for score in scores]
        rows.append(f"| {name} | `{task.config_hash}` | {cache} | {' | '.join(texts)} |")
    head = "| task | cache entry | | test nRMSE | persistence |"
    return ["", head, "|:--|:--|:--|--:|--:|", *rows]


def _gpu_table(gpu: Mapping[str, GpuUse]) -> list[str]:
    if not gpu:
        return []
    return [
        "",
        "| phase | GPU busy | p10 | at 0 % | memory, MB | power, W | samples |",
        "|:--|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {phase} | {use.mean_pct:.0f} % | {use.p10_pct:.0f} % | {use.idle_share:.0%} "
            f"| {use.max_memory_mb:,.0f} "
            f"| {'' if use.mean_power_w is None else f'{use.mean_power_w:.0f}'} "
            f"| {use.num_samples} |"
            for phase, use in gpu.items()
        ),
    ]


def _cache_story(breakdown: Breakdown) -> str:
    if breakdown.cache_reused:
        return "reused"
    if breakdown.changed:
        return f"built: {'; '.join(breakdown.changed)}"
    return "built"


def _image(text: str, png: bytes) -> str:
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode()})"
