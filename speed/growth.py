"""Growth: encode, load and one epoch for more and more trajectories, which should stay flat.

And what reads all that is kept, by `kept`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from speed import inputs, kept
from speed.harness import Comparison, Contender, Result, Sample, alternate
from speed.measure import fresh_process, peak_of, warm_page_cache
from speed.settings import Settings
from ups.latents.build import ensure
from ups.latents.loader import load
from ups.latents.store import estimate_cache_size_mb
from ups.machine.host import kind
from ups.startup.measure.prepare import touch_memory
from ups.training.loop import train
from ups.training.step import TrainStep

T = TypeVar("T")
SIZES = (512, 1024, 2048, 4096)
PHASES = ("encode", "first touch", "load", "epoch")
WARM_UP, LOAD_STRIDE = 16, 2
# A small operator and few pairs of each trajectory: what is looked at is the growth.
SMALL = {
    **inputs.SMALL_OPERATOR,
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
    warm_page_cache(inputs.tiled_set(settings))
    with ExitStack() as stack:
        processes = {n: stack.enter_context(fresh_process()) for n in sizes}
        for process in processes.values():
            _measure(process, settings, WARM_UP)
        contenders = [
            Contender(f"N = {n}", "peer", partial(_measure, process, settings, n))
            for n, process in processes.items()
        ]
        results = alternate(contenders, settings.repeats, warm_ups=0)
    rows = {phase: [_of_phase(result, phase) for result in results] for phase in PHASES}
    trial = "" if settings.is_default else "-trial"
    picture = settings.results / f"growth-{kind(settings.device)}{trial}.png"
    draw(sizes, rows, picture)
    for phase, of_phase in rows.items():
        of_phase[-1].role = "ours"
        yield Comparison(
            phase=f"{phase}, per trajectory, the largest N beside the others",
            unit="ms",
            results=of_phase,
            notes=[*NOTES, f"The picture: {picture.name}."],
        )
    yield from kept.run(settings)


def _measure(process: ProcessPoolExecutor, settings: Settings, num: int) -> Sample:
    found = process.submit(measure, settings, num).result()
    extras: dict[str, float] = {}
    for phase, (seconds, num_bytes) in found.items():
        extras |= {f"{phase} ms": 1e3 * seconds / num, f"{phase} kB": num_bytes / 1e3 / num}
    return Sample(sum(seconds for seconds, _ in found.values()), extras)


def measure(settings: Settings, num: int) -> dict[str, tuple[float, int]]:
    """The phases once, seconds and bytes each; runs in a process of its own."""
    device, cache = settings.device, f"cache-growth-{num}"
    sparse = {**SMALL, "training.time_stride": (settings.num_frames - 1) // 2}
    config = inputs.config(settings, cache, sparse)
    dense = inputs.config(settings, cache, {**SMALL, "training.time_stride": LOAD_STRIDE})
    staged = inputs.tiled_sources(settings, num)
    inputs.empty(config.training.latent_cache_dir)
    found: dict[str, tuple[float, int]] = {}

    def note(phase: str, work: Callable[[], T]) -> T:
        result, seconds, num_bytes = peak_of(work)
        found[phase] = seconds, num_bytes
        return result

    entry = note("encode", lambda: ensure(config, staged, device=device))
    os.sync()  # or the disk would still be at it
    of_problem = {inputs.PROBLEM: entry}, {inputs.PROBLEM: staged}
    frames = -(-settings.num_frames // LOAD_STRIDE)
    num_bytes = round(estimate_cache_size_mb(dense, num, frames) * 1e6)
    note("first touch", lambda: touch_memory(num_bytes))
    note("load", lambda: load(dense, *of_problem, device=device).close())
    latents = load(config, *of_problem, device=device)
    run_dir, step = inputs.empty(settings.folder / f"runs-growth-{num}"), TrainStep(config)
    step.take_made_up_step()
    note("epoch", lambda: train(config, latents, run_dir, step=step))
    latents.close()
    inputs.empty(config.training.latent_cache_dir)
    return found


def draw(sizes: Sequence[int], found: dict[str, list[Result]], path: Path) -> None:
    """Time and peak memory per trajectory against N, a panel a phase."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(PHASES), sharex=True)
    for column, (phase, results) in enumerate(found.items()):
        measured = [(n, r) for n, r in zip(sizes, results, strict=True) if r.values]
        if not measured:
            continue
        numbers = [n for n, _ in measured]
        rows = (
            ("ms per trajectory", np.array([r.values for _, r in measured])),
            ("peak kB per trajectory", np.array([r.extras["peak kB"] for _, r in measured])),
        )
        for panel, (label, values) in zip(panels[:, column], rows, strict=True):
            middle, least, most = np.median(values, 1), values.min(1), values.max(1)
            spread = [middle - least, most - middle]
            panel.errorbar(numbers, middle, spread, marker="o", capsize=4)
            panel.set_ylim(0, most.max() * 1.15 or 1)
            panel.set_xscale("log", base=2)
            panel.set_xticks(numbers, [f"{n:,}" for n in numbers])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.set_ylabel(label)
        panels[0, column].set_title(phase)
        panels[1, column].set_xlabel("trajectories N")
    figure.suptitle("Time and peak memory per trajectory: median, smallest and largest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _of_phase(result: Result, phase: str) -> Result:
    """One phase of what was measured in one go."""
    values = result.extras.get(f"{phase} ms", [])
    memory = result.extras.get(f"{phase} kB", [])
    return Result(result.name, "peer", values, {"peak kB": memory} if values else {}, result.failed)
