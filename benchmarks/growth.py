"""Growth: encode, load and one epoch for more and more trajectories; all should stay flat."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import fixture
from benchmarks.fixture import TASK
from benchmarks.harness import Comparison, Contender, Result, Sample, alternate
from benchmarks.memory import peak_of
from benchmarks.settings import Settings, warm_page_cache
from benchmarks.worker import Worker
from ups.startup.at_hand import claim
from ups.telemetry.machine import kind

SIZES = (512, 1024, 2048, 4096)
PHASES = ("encode", "first touch", "load", "epoch")
WARM_UP, LOAD_STRIDE = 16, 2
# A small operator and few pairs of each trajectory: what is looked at is the growth.
SMALL = {
    "operator.hidden_dim": 32,
    "operator.num_heads": 4,
    "operator.depths": [1, 1, 1],
    "training.batch_size": 48,
    "training.compile": "off",
    "features.preload": "ram",
    "stages.operator.epochs": 1,
}
NOTES = [
    "Growth: a process of its own for each N, which has done 16 trajectories before; encode with "
    "an empty cache, load every second frame into memory, one epoch of a small operator on the "
    "first, middle and last frame; source and cache in the page cache. Peak memory: VmHWM during "
    "the phase less VmRSS before it; that of encoding is bounded, so its share of a trajectory "
    "falls.",
    "first touch: clearing as much fresh memory as the load needs, just before it. A host that "
    "takes back the freed pages of a virtual machine makes it dear, and by chance: so the load "
    "itself is measured after it.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    sizes = list(dict.fromkeys(settings.scaled(n) for n in SIZES))
    warm_page_cache(fixture.trajectories(settings))
    with ThreadPoolExecutor(len(sizes)) as pool:  # each imports torch
        workers = dict(
            zip(sizes, pool.map(lambda _: Worker("benchmarks.growth"), sizes), strict=True)
        )
    try:
        for worker in workers.values():
            _measure(settings, worker, WARM_UP)
        found: dict[str, dict[int, Result]] = {phase: {} for phase in PHASES}
        results = alternate(
            [
                Contender(f"N = {n}", "peer", lambda n=n: _measure(settings, workers[n], n))
                for n in sizes
            ],
            settings.repeats,
            warm_ups=0,
        )
    finally:
        for worker in workers.values():
            worker.close()
    for n, result in zip(sizes, results, strict=True):
        for phase in PHASES:
            found[phase][n] = _of_phase(result, phase)
    trial = "" if settings.is_default else "-trial"
    picture = settings.results / f"growth-{kind(settings.device)}{trial}.png"
    draw(found, picture)
    for phase in PHASES:
        rows = list(found[phase].values())
        rows[-1].role = "ours"
        yield Comparison(
            section="growth",
            phase=f"{phase}, per trajectory, the largest N beside the others",
            unit="ms",
            better="lower",
            results=rows,
            notes=[*NOTES, f"The picture: {picture.name}."],
        )


def measure(folder: str, num: int, **shape: Any) -> dict[str, float]:
    """Called in a process of its own: the phases once, seconds and bytes each."""
    from ups.latents.build import ensure
    from ups.latents.loader import load
    from ups.training.loop import train
    from ups.training.step import TrainStep

    settings = Settings(folder=Path(folder), **shape)
    cache = f"cache-growth-{num}"
    sparse = {**SMALL, "training.time_stride": (settings.num_frames - 1) // 2}
    config, staged = fixture.config(settings, cache, sparse), fixture.sources(settings, num)
    fixture.empty(config.training.latent_cache_dir)
    found: dict[str, float] = {}
    kept: list[Any] = []

    def note(phase: str, work: Any) -> None:
        found[f"{phase} s"], found[f"{phase} bytes"] = peak_of(work)

    note("encode", lambda: kept.append(ensure(config, staged, device=settings.device)))
    os.sync()  # or the disk would still be at it
    dense = fixture.config(settings, cache, {**SMALL, "training.time_stride": LOAD_STRIDE})
    frames = -(-settings.num_frames // LOAD_STRIDE)
    num_bytes = num * frames * dense.latent.tokens * dense.latent.dim * 2
    note("first touch", lambda: claim(num_bytes))
    note(
        "load", lambda: load(dense, {TASK: kept[0]}, {TASK: staged}, device=settings.device).close()
    )
    kept.append(load(config, {TASK: kept[0]}, {TASK: staged}, device=settings.device))
    run_dir, step = fixture.empty(settings.folder / f"runs-growth-{num}"), TrainStep(config)
    step.take_made_up_step()
    note("epoch", lambda: train(config, kept[1], run_dir, step=step))
    kept[1].close()
    fixture.empty(config.training.latent_cache_dir)
    return found


def draw(found: dict[str, dict[int, Result]], path: Path) -> None:
    """Time and peak memory per trajectory against N, a panel a phase."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(PHASES), sharex=True)
    for column, phase in enumerate(PHASES):
        results = [(n, r) for n, r in found[phase].items() if r.values]
        numbers = [n for n, _ in results]
        rows = (
            ("ms per trajectory", [r.values for _, r in results]),
            ("peak kB per trajectory", [r.extras["peak kB"] for _, r in results]),
        )
        for row, (label, values) in enumerate(rows):
            panel = panels[row][column]
            middle = [sorted(v)[len(v) // 2] for v in values]
            low = [m - min(v) for m, v in zip(middle, values, strict=True)]
            high = [max(v) - m for m, v in zip(middle, values, strict=True)]
            panel.errorbar(numbers, middle, [low, high], marker="o", capsize=4)
            top = max((max(v) for v in values), default=0.0)
            panel.set_ylim(0, top * 1.15 if top > 0 and math.isfinite(top) else 1)
            panel.set_xscale("log", base=2)
            panel.set_xticks(numbers, [f"{n:,}" for n in numbers])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.set_ylabel(label)
            if row == 0:
                panel.set_title(phase)
            else:
                panel.set_xlabel("trajectories N")
    figure.suptitle("Time and peak memory per trajectory: median, smallest and largest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _measure(settings: Settings, worker: Worker, num: int) -> Sample:
    names = ("size", "num_solved", "num_frames", "grid_points", "device")
    shape = {name: getattr(settings, name) for name in names}
    found = worker.call("measure", folder=str(settings.folder), num=num, **shape)
    extras = {}
    for phase in PHASES:
        extras[f"{phase} ms"] = 1e3 * found[f"{phase} s"] / num
        extras[f"{phase} kB"] = found[f"{phase} bytes"] / 1e3 / num
    return Sample(sum(found[f"{phase} s"] for phase in PHASES), extras)


def _of_phase(result: Result, phase: str) -> Result:
    """One phase of what was measured in one go."""
    values = result.extras.get(f"{phase} ms", [])
    memory = result.extras.get(f"{phase} kB", [])
    return Result(result.name, "peer", values, {"peak kB": memory} if values else {}, result.failed)
