"""`report-overhead`: the breakdown of a run as artifacts that a person reads at a glance."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal

from tasks.timeline import close_timeline, phase_task
from ups.config import RunConfig
from ups.data.sources import Staged
from ups.telemetry.gpu import FIRST_EPOCH, GpuUse, GpuWatch, by_phase, in_words
from ups.telemetry.metrics_file import add_to_summary
from ups.telemetry.phases import (
    STOPPED,
    Breakdown,
    Span,
    plan_metrics,
    provision_s,
    tabulate,
    tabulate_provision,
)
from ups.telemetry.process import process_started_at

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.training.evaluate import Scores
    from ups.training.loop import TrainResult

log = logging.getLogger(__name__)

BOOT_BOUNDS = {
    "cold": "cold start: a new interpreter imports Prefect and the flow",
    "warm": "warm start: forked; Prefect's engine loads the flow and sets states",
    "in process": "in process: Prefect's engine sets states",
}
TRIGGERS = ("Scheduled", "AwaitingRetry")


@dataclass(slots=True)
class Story:
    """What the flow has learned about its run so far; None where it has not got there."""

    config: RunConfig
    flow_run_id: UUID
    run_dir: Path
    gpu: GpuWatch = field(default_factory=GpuWatch)
    staged: dict[str, Sequence[Staged]] = field(default_factory=dict)
    config_hash: str | None = None
    entry: CacheEntry | None = None
    cache_reused: bool | None = None
    latents: Latents | None = None
    result: TrainResult | None = None
    scores: Scores | None = None
    first_step_at: float | None = None
    failure: BaseException | None = None
    build_after: float | None = None  # Unix time: an older cache entry is built again
    provision: Sequence[Span] = ()  # before the trigger, on a machine rented for this run


@phase_task("report", task_run_name="6 report-overhead")
def report_overhead(story: Story) -> Breakdown:
    """Write `breakdown.json` and `gantt.png`, and publish both in the UI.

    The plan's metrics also go to `metrics.jsonl`.
    """
    breakdown = _break_down(story)
    breakdown.save(story.run_dir)
    add_to_summary(story.run_dir, breakdown.metrics)
    from ups.telemetry.gantt import draw_gantt

    end = breakdown.triggered_at + breakdown.until_s
    gantt = draw_gantt(
        breakdown.spans, breakdown.triggered_at, end, _headline(breakdown), breakdown.provision
    )
    (story.run_dir / "gantt.png").write_bytes(gantt)
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
        description=_headline(breakdown),
    )
    picture = story.scores.picture.read_bytes() if story.scores else None
    create_markdown_artifact(
        key="overhead",
        markdown=_markdown(breakdown, gantt, picture),
        description=_headline(breakdown),
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
        *_with_first_step(spans, story.first_step_at),
    ]
    end = story.first_step_at or max(span.end for span in spans)
    until_s = end - triggered_at
    phases = tabulate(spans, _bounds(story, states), triggered_at, end)
    paid_s = provision_s(story.provision) + until_s
    cost = paid_s / 3600 * story.config.startup.price_per_hour
    reused = bool(story.cache_reused)
    metrics = plan_metrics(
        cache_s=next((p.seconds for p in phases if p.phase == "cache"), 0.0),
        cache_reused=reused,
        startup_s=paid_s,
        ttfs_s=until_s if story.first_step_at else None,
        cost_usd=cost,
    )
    if story.result is not None:
        metrics["training/epoch_time_sec"] = story.result.epoch_time_s
    gpu = _gpu_use(story, spans)
    if FIRST_EPOCH in gpu:
        metrics["training/gpu_utilization_pct"] = gpu[FIRST_EPOCH].mean_pct
    provision = tabulate_provision(story.provision, story.first_step_at)
    metrics.update({f"{row.phase}_s": row.seconds for row in provision})
    scores = story.scores
    return Breakdown(
        run=story.run_dir.name,
        config=story.config.name,
        config_hash=story.config_hash,
        start_mode=os.environ.get("UPS_STARTED", "in process"),
        triggered_at=triggered_at,
        ttfs_s=until_s if story.first_step_at else None,
        until_s=until_s,
        unaccounted_s=phases[-1].seconds,
        cost_usd=cost,
        cache_reused=story.cache_reused,
        changed=story.entry.changed if story.entry and not reused else (),
        failed=None if story.failure is None else _describe(story.failure),
        phases=(*provision, *phases),
        provision=tuple(story.provision),
        phase_bytes=_phase_bytes(story),
        spans=tuple(spans),
        metrics=metrics,
        gpu=gpu or None,
        gpu_note=story.gpu.note,
        nrmse_rollout=scores.rollout["nRMSE"] if scores else None,
        nrmse_persistence=scores.persistence_rollout["nRMSE"] if scores else None,
    )


def _gpu_use(story: Story, spans: Sequence[Span]) -> dict[str, GpuUse]:
    stretches = [(span.phase, span.start, span.end) for span in spans]
    if story.result is not None and story.result.first_epoch is not None:
        stretches.append((FIRST_EPOCH, *story.result.first_epoch))
    return by_phase(story.gpu.samples, stretches)


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


def _with_first_step(spans: Sequence[Span], first_step_at: float | None) -> list[Span]:
    """The training task cut in two at the end of the first step."""
    cut = []
    for span in spans:
        if span.phase != "train" or first_step_at is None:
            cut.append(span)
            continue
        first = {"phase": "first step", "name": "4 first step", "end": first_step_at}
        first["state"] = "Completed"  # whatever became of the training after it
        cut.append(span.model_copy(update=first))
        cut.append(span.model_copy(update={"start": first_step_at}))
    return cut


def _bounds(story: Story, states: Sequence[State]) -> dict[str, str]:
    waited = any(state.name == "AwaitingConcurrencySlot" for state in states)
    bounds = {
        "queue": "another run of this deployment, which ran first"
        if waited
        else "worker notices the run, starts a process",
        "download": "nothing was staged",
        "boot": BOOT_BOUNDS[os.environ.get("UPS_STARTED", "in process")],
        "validate": "config, memory, disk and device; no network, no data",
        "warm-up": "import torch where it is not yet, build and warm the model",
        "first step": "one optimizer step",
    }
    files = {s.path: s for staged in story.staged.values() for s in staged}.values()
    if files:
        fetched = sum(s.fetched_bytes for staged in story.staged.values() for s in staged)
        total = sum(s.num_bytes for s in files)
        seconds = max(s.seconds for s in files)
        bounds["download"] = (
            f"network: {_size(fetched)}, {fetched / 1e6 / max(seconds, 1e-3):,.0f} MB/s"
            if fetched
            else f"{_size(total)} found verified, nothing fetched"
        )
    if story.entry is not None:
        entry = story.entry
        bounds["cache"] = (
            f"{_size(entry.num_bytes)} reused"
            if story.cache_reused
            else f"read, encode, write: {entry.num_trajectories} trajectories, "
            f"{entry.num_trajectories / max(entry.seconds, 1e-3):,.0f}/s"
        )
    if story.latents is not None:
        latents = story.latents
        rate = latents.num_bytes / 1e6 / max(latents.seconds, 1e-3)
        bounds["load"] = f"into {latents.tier}: {_size(latents.num_bytes)}" + (
            f", {rate:,.0f} MB/s" if latents.num_bytes else ""
        )
    return bounds


def _phase_bytes(story: Story) -> dict[str, int]:
    moved = {
        "download": sum(s.fetched_bytes for staged in story.staged.values() for s in staged),
        "cache": 0 if story.entry is None or story.cache_reused else story.entry.num_bytes,
        "load": 0 if story.latents is None else story.latents.num_bytes,
    }
    return {phase: num_bytes for phase, num_bytes in moved.items() if num_bytes}


def _headline(breakdown: Breakdown) -> str:
    if breakdown.ttfs_s is None and breakdown.failed is None:
        return f"{breakdown.config}: all steps were taken before, none was left to take"
    if breakdown.ttfs_s is None:
        ended = "stopped" if breakdown.failed == STOPPED else "failed"
        return f"{breakdown.config}: {ended} after {breakdown.until_s:.1f} s"
    cache = "reused" if breakdown.cache_reused else "built"
    before = provision_s(breakdown.provision)
    provisioned = f" after {before:.1f} s of provisioning" if before else ""
    return (
        f"{breakdown.config}: time to first step {breakdown.ttfs_s:.2f} s{provisioned}, "
        f"cache {cache}, ${breakdown.cost_usd:.4f}"
    )


def _markdown(breakdown: Breakdown, gantt: bytes, picture: bytes | None) -> str:
    lines = [f"## {_headline(breakdown)}", ""]
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
    if breakdown.config_hash:
        lines.append(f"- cache entry `{breakdown.config_hash}`, {_cache_story(breakdown)}")
    lines.append(f"- run folder `{breakdown.run}`")
    if breakdown.nrmse_rollout is not None:
        lines.append(
            f"- test nRMSE over the full rollout **{breakdown.nrmse_rollout:.4f}**, "
            f"persistence {breakdown.nrmse_persistence:.4f}"
        )
    lines.append(f"- GPU: {in_words(breakdown.gpu, breakdown.gpu_note)}")
    lines += _gpu_table(breakdown.gpu or {})
    if picture is not None:
        lines += ["", _image("truth, prediction and error", picture)]
    return "\n".join(lines)


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


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _describe(error: BaseException) -> str:
    if isinstance(error, TerminationSignal):
        return STOPPED
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
