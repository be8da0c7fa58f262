"""The breakdown of a run's startup, made of what the run has learned, however it was started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ups.runs import how_it_ended
from ups.telemetry.gpu import FIRST_EPOCH, GpuUse, by_phase
from ups.telemetry.metrics_file import add_to_summary
from ups.telemetry.phases import (
    STOPPED,
    Breakdown,
    Span,
    TaskFigures,
    plan_metrics,
    provision_s,
    tabulate,
    tabulate_provision,
)
from ups.telemetry.story import Cached, Story


def break_down(
    story: Story,
    spans: Sequence[Span],
    *,
    triggered_at: float,
    start_mode: str,
    bounds: Mapping[str, str],
) -> Breakdown:
    """
    Args:
        spans: of the phases so far; the training's, which may go on, is cut at the first step.
        triggered_at: Unix time in seconds.
        bounds: phase → what bounds it, where that is a matter of how the run was started.
    """
    spans = _with_first_step(spans, story.first_step_at)
    end = story.first_step_at or max(span.end for span in spans)
    until_s = end - triggered_at
    phases = tabulate(spans, {**_bounds(story), **bounds}, triggered_at, end)
    paid_s = provision_s(story.provision) + until_s
    cost = paid_s / 3600 * story.config.startup.price_per_hour
    metrics = plan_metrics(
        cache_s=next((p.seconds for p in phases if p.phase == "cache"), 0.0),
        cache_reused=bool(story.cache_reused),
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
        start_mode=start_mode,
        triggered_at=triggered_at,
        ttfs_s=until_s if story.first_step_at else None,
        until_s=until_s,
        unaccounted_s=phases[-1].seconds,
        cost_usd=cost,
        cache_reused=story.cache_reused,
        changed=tuple(
            line for c in story.entries.values() if not c.is_reused for line in c.entry.changed
        ),
        tasks=_tasks(story),
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


def leave(breakdown: Breakdown, run_dir: Path) -> bytes:
    """Write `breakdown.json`, `gantt.png` and the metrics into a run's folder.

    Returns:
        The picture, as PNG.
    """
    breakdown.save(run_dir)
    add_to_summary(run_dir, breakdown.metrics)
    from ups.telemetry.gantt import draw_gantt

    end = breakdown.triggered_at + breakdown.until_s
    gantt = draw_gantt(
        breakdown.spans, breakdown.triggered_at, end, headline(breakdown), breakdown.provision
    )
    (run_dir / "gantt.png").write_bytes(gantt)
    return gantt


def headline(breakdown: Breakdown) -> str:
    """A run's startup in one line."""
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


def _tasks(story: Story) -> dict[str, TaskFigures]:
    """Of each task, where there are several."""
    names = [task.name for task in story.config.data.tasks]
    if len(names) == 1:
        return {}
    scores = story.scores.tasks if story.scores else {}
    hashes = dict(zip(names, story.config_hashes, strict=False))  # fewer in a run that failed
    return {
        name: TaskFigures(
            config_hash=hashes.get(name),
            cache_reused=story.entries[name].is_reused if name in story.entries else None,
            nrmse_rollout=scores[name].rollout["nRMSE"] if name in scores else None,
            nrmse_persistence=scores[name].persistence_rollout["nRMSE"] if name in scores else None,
        )
        for name in names
    }


def _gpu_use(story: Story, spans: Sequence[Span]) -> dict[str, GpuUse]:
    stretches = [(span.phase, span.start, span.end) for span in spans]
    if story.result is not None and story.result.first_epoch is not None:
        stretches.append((FIRST_EPOCH, *story.result.first_epoch))
    return by_phase(story.gpu.samples, stretches)


def _bounds(story: Story) -> dict[str, str]:
    bounds = {
        "download": "nothing was staged",
        "validate": "config, memory, disk and device; no network, no data",
        "first step": "one optimizer step",
    }
    files = {s.path: s for s in story.files()}.values()
    if files:
        fetched = sum(s.fetched_bytes for s in story.files())
        total = sum(s.num_bytes for s in files)
        seconds = max(s.seconds for s in files)
        bounds["download"] = (
            f"network: {_size(fetched)}, {fetched / 1e6 / max(seconds, 1e-3):,.0f} MB/s"
            if fetched
            else f"{_size(total)} found verified, nothing fetched"
        )
    if story.entries:
        bounds["cache"] = _bound_of_cache(list(story.entries.values()))
    if story.latents is not None:
        latents = story.latents
        rate = latents.num_bytes / 1e6 / max(latents.seconds, 1e-3)
        bounds["load"] = f"into {latents.tier}: {_size(latents.num_bytes)}" + (
            f", {rate:,.0f} MB/s" if latents.num_bytes else ""
        )
    return bounds


def _bound_of_cache(entries: Sequence[Cached]) -> str:
    built = [cached.entry for cached in entries if not cached.is_reused]
    reused = sum(cached.entry.num_bytes for cached in entries if cached.is_reused)
    parts = []
    if built:
        count = sum(entry.num_trajectories for entry in built)
        rate = count / max(sum(entry.seconds for entry in built), 1e-3)
        parts.append(f"read, encode, write: {count} trajectories, {rate:,.0f}/s")
    if reused or not built:
        parts.append(f"{_size(reused)} reused")
    return "; ".join(parts)


def _phase_bytes(story: Story) -> dict[str, int]:
    moved = {
        "download": sum(s.fetched_bytes for s in story.files()),
        "cache": sum(c.entry.num_bytes for c in story.entries.values() if not c.is_reused),
        "load": 0 if story.latents is None else story.latents.num_bytes,
    }
    return {phase: num_bytes for phase, num_bytes in moved.items() if num_bytes}


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _describe(error: BaseException) -> str:
    if how_it_ended(error) == "stopped":
        return STOPPED
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
