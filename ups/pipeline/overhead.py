"""The breakdown of a run's startup, made of what the run has learned, however it was started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ups.machine.gpu import FIRST_EPOCH, by_phase
from ups.pipeline.state import RunState
from ups.runs.breakdown import (
    IDLE,
    STOPPED,
    Breakdown,
    ProblemFigures,
    Span,
    provision_s,
    tabulate,
    tabulate_provision,
)
from ups.runs.critical_path import critical_path, seconds_by_phase
from ups.runs.metrics import add_to_summary
from ups.runs.record import describe_error, how_it_ended
from ups.runs.trace_file import write_trace
from ups.units import format_size


def break_down(
    run: RunState,
    spans: Sequence[Span],
    *,
    triggered_at: float,
    start_mode: str,
    bounds: Mapping[str, str],
) -> Breakdown:
    """Make the breakdown of a run's startup, as far as the run has got.

    Args:
        spans: of the phases so far; the training's, which may go on, is cut at the first step.
        triggered_at: Unix time in seconds.
        bounds: phase → what bounds it, where that is a matter of how the run was started.
    """
    spans = _with_first_step(run, spans)
    end = run.first_step_at or max(span.end for span in spans)
    until_s = end - triggered_at
    words = {**_bounds(run), **bounds, **_bounds_of_ranks(run)}
    phases = tabulate(spans, words, triggered_at, end)
    paid_s = provision_s(run.provision) + until_s
    cost = paid_s / 3600 * run.config.startup.price_per_hour
    cache_s = next((row.seconds for row in phases if row.phase == "cache"), 0.0)
    metrics = {  # the plan's, by its names and in its units, and then ours
        "startup/cache_precompute_time_min": cache_s / 60,
        "startup/cache_reused": float(bool(run.cache_reused)),
        "startup/total_startup_time_min": paid_s / 60,
        "startup/cost_usd": cost,
    }
    if run.first_step_at:
        metrics["startup/ttfs_s"] = until_s
    if run.result is not None:
        metrics["training/epoch_time_sec"] = run.result.epoch_time_s
    idle_s, waited_s = _idle(run, triggered_at)
    if idle_s is not None and waited_s is not None:
        metrics["startup/gpu_idle_s"] = idle_s
        metrics["startup/waited_for_data_s"] = waited_s
    waited_for = critical_path(spans, triggered_at, end) if run.first_step_at else ()
    stretches = [(span.phase, span.start, span.end) for span in spans]
    if run.result is not None and run.result.first_epoch is not None:
        stretches.append((FIRST_EPOCH, *run.result.first_epoch))
    gpu = by_phase(run.gpu.samples, stretches)
    if FIRST_EPOCH in gpu:
        metrics["training/gpu_utilization_pct"] = gpu[FIRST_EPOCH].mean_pct
    awaited = _awaited(run)
    provision = tabulate_provision(run.provision, run.first_step_at)
    metrics.update({f"{row.phase}_s": row.seconds for row in provision})
    scores = run.scores
    return Breakdown(
        run=run.run_dir.name,
        config=run.config.name,
        config_hash=run.config_hash,
        start_mode=start_mode,
        triggered_at=triggered_at,
        ttfs_s=until_s if run.first_step_at else None,
        until_s=until_s,
        idle_s=idle_s,
        waited_s=waited_s,
        waited_for=seconds_by_phase(waited_for),
        unaccounted_s=phases[-1].seconds,
        cost_usd=cost,
        cache_reused=run.cache_reused,
        changed=tuple(line for entry in run.entries.values() for line in entry.changed),
        problems=_problems(run),
        failed=_failure(run),
        phases=(*provision, *phases),
        provision=tuple(run.provision),
        awaited=awaited,
        phase_bytes=_phase_bytes(run),
        spans=tuple(spans),
        metrics=metrics,
        gpu=gpu or None,
        gpu_note=run.gpu.note or ("the first epoch is not over" if IDLE in awaited else ""),
        nrmse_rollout=scores.rollout["nRMSE"] if scores else None,
        nrmse_persistence=scores.persistence_rollout["nRMSE"] if scores else None,
    )


def _idle(run: RunState, triggered_at: float) -> tuple[float | None, float | None]:
    """Seconds without a step to compute until the end of epoch 1, and of them those of waits."""
    result = run.result
    if result is None or result.first_epoch is None or result.resumed_from_step:
        return None, None
    if result.num_steps < result.steps_per_epoch:  # it was cut short: the rest may have waited
        return None, None
    began, waited_s = result.first_epoch[0], result.waited_s
    return began - triggered_at + waited_s, waited_s


def _awaited(run: RunState) -> dict[str, str]:
    """The figures that a run which goes on does not know yet → when it will."""
    if run.first_step_at is None or run.failure is not None or run.scores is not None:
        return {}
    is_in_epoch_1 = run.result is None and run.steps is not None and run.steps.first == 1
    idle = {IDLE: "not known before the end of epoch 1"} if is_in_epoch_1 else {}
    return {**idle, "test nRMSE": "not known before the end of the run"}


def leave(breakdown: Breakdown, run_dir: Path) -> bytes:
    """Write `breakdown.json`, `gantt.png` and the metrics into a run's folder.

    Returns:
        The picture, as PNG.
    """
    breakdown.save(run_dir)
    add_to_summary(run_dir, breakdown.metrics)
    gantt = draw(breakdown)
    (run_dir / "gantt.png").write_bytes(gantt)
    return gantt


def leave_trace(run: RunState, breakdown: Breakdown) -> None:
    """Write `trace.json` into a run's folder, as far as the run has got."""
    write_trace(run.run_dir, run.trace, breakdown, run.gpu.samples)


def draw(breakdown: Breakdown) -> bytes:
    """The bars of the phases up to the first step, as PNG."""
    from ups.runs.gantt import draw_gantt

    start, end = breakdown.triggered_at, breakdown.triggered_at + breakdown.until_s
    return draw_gantt(breakdown.spans, start, end, breakdown.provision)


def _with_first_step(run: RunState, spans: Sequence[Span]) -> list[Span]:
    """The training task cut at the end of the first step, and at its wait for its rows."""
    if run.first_step_at is None:
        return list(spans)
    cut = []
    for span in spans:
        if span.phase == "train":
            cut += _first_step(run, span.start, run.first_step_at)
            cut.append(span.model_copy(update={"start": run.first_step_at}))
        else:
            cut.append(span)
    return cut


def _first_step(run: RunState, start: float, end: float) -> list[Span]:
    """The first step, and before it the ranks that take it, and rows on their way."""
    spans = []
    if run.ranks is not None and start <= run.ranks.started_at <= run.ranks.joined_at <= end:
        times = (start, *run.ranks)
        for i, name in enumerate(("ranks", "rendezvous")):
            spans.append(Span(phase=name, name=f"4 {name}", start=times[i], end=times[i + 1]))
        start = run.ranks.joined_at
    step = Span(phase="first step", name="4 first step", start=start, end=end)
    arrival = None if run.latents is None else run.latents.arrival
    if arrival is None or arrival.first_wait is None or arrival.first_wait[0] >= end:
        return [*spans, step]
    began, ended = arrival.first_wait
    return [
        *spans,
        step.model_copy(update={"end": began}),
        Span(phase="first rows", name="4 first rows", start=began, end=ended),
        step.model_copy(update={"start": ended}),
    ]


def _problems(run: RunState) -> dict[str, ProblemFigures]:
    """The figures of each problem, where there are several."""
    names = [problem.name for problem in run.config.data.problems]
    if len(names) == 1:
        return {}
    scores = run.scores.problems if run.scores else {}
    return {
        name: ProblemFigures(
            config_hash=run.config_hashes.get(name),
            cache_reused=run.entries[name].reused if name in run.entries else None,
            nrmse_rollout=scores[name].rollout["nRMSE"] if name in scores else None,
            nrmse_persistence=scores[name].persistence_rollout["nRMSE"] if name in scores else None,
        )
        for name in names
    }


def _bounds(run: RunState) -> dict[str, str]:
    bounds = {
        "download": "nothing was staged",
        "validate": "config, memory, disk and device; no network, no data",
        "first rows": "the first batch's rows: on their way, encoded as they come",
        "rendezvous": "the last of the ranks comes, of the same config, commit and data",
        "first step": "one optimizer step",
    }
    files = {s.path: s for s in run.files() if s.is_here}.values()
    num_absent = len({s.path for s in run.files() if not s.is_here})
    if files:
        fetched = sum(s.fetched_bytes for s in run.files())
        total = sum(s.num_bytes for s in files)
        seconds = max(s.seconds for s in files)
        doubtful = sum(not s.is_verified for s in files)
        bounds["download"] = (
            f"network: {format_size(fetched)}, {fetched / 1e6 / max(seconds, 1e-3):,.0f} MB/s"
            if fetched
            else f"{format_size(total)} found{'' if doubtful else ' verified'}, nothing fetched"
        )
        if doubtful:
            bounds["download"] += f"; {doubtful} of {len(files)} files not verified: no manifest"
    if num_absent:
        bounds["download"] += f"; {num_absent} files not needed: latents in the cache"
    if run.entries:
        bounds["cache"] = _bound_of_cache(run)
    elif _is_pulling(run):
        bounds["cache"] = "pulled from the shared cache, as training takes the rows"
    elif run.latents is not None and run.latents.arrival is not None:
        bounds["cache"] = "read, encode, write: as the rows come"
    if run.latents is not None and run.latents.arrival is not None:
        what = "rows for the encoder's fit arrive; the others"
        if _is_pulling(run):
            what = "memory for what is pulled; its rows"
        bounds["load"] = f"{what} come behind it"
    elif run.latents is not None:
        latents = run.latents
        rate = latents.num_bytes / 1e6 / max(latents.seconds, 1e-3)
        bounds["load"] = (
            f"into {latents.tier}: {format_size(latents.num_bytes)}, {rate:,.0f} MB/s"
            if latents.num_bytes
            else f"{latents.tier}: read when wanted"
        )
    return bounds


def _bounds_of_ranks(run: RunState) -> dict[str, str]:
    if run.ranks is None:
        return {}
    return {
        "ranks": "the last of the processes starts",
        "first step": "one optimizer step of the slowest rank",
    }


def _is_pulling(run: RunState) -> bool:
    """Whether what is trained on comes, or came, from the shared cache meanwhile."""
    return run.sharing is not None and run.sharing.hits is not None


def _bound_of_cache(run: RunState) -> str:
    pulled = {} if run.sharing is None else run.sharing.pulled
    found = [entry for name, entry in run.entries.items() if name not in pulled]
    built = [entry for entry in found if not entry.reused]
    reused = sum(entry.num_bytes for entry in found if entry.reused)
    parts = []
    if built:
        count = sum(entry.num_trajectories for entry in built)
        rate = count / max(sum(entry.seconds for entry in built), 1e-3)
        parts.append(f"read, encode, write: {count} trajectories, {rate:,.0f}/s")
    parts += map(str, pulled.values())
    if reused or not parts:
        parts.append(f"{format_size(reused)} reused")
    return "; ".join(parts)


def _phase_bytes(run: RunState) -> dict[str, int]:
    moved = {
        "download": sum(s.fetched_bytes for s in run.files()),
        "cache": sum(entry.num_bytes for entry in run.entries.values() if not entry.reused)
        + sum(pulled.num_bytes for pulled in (run.sharing.pulled if run.sharing else {}).values()),
        "load": 0 if run.latents is None else run.latents.num_bytes,
    }
    return {phase: num_bytes for phase, num_bytes in moved.items() if num_bytes}


def _failure(run: RunState) -> str | None:
    if run.failure is None:
        return None
    return STOPPED if how_it_ended(run.failure) == "stopped" else describe_error(run.failure)
