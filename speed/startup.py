"""Start-up: from the start of a process to its first optimizer step, for each way to compile.

On a GPU also the whole of it through Prefect, with the set of PDEBench's size.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from speed import inputs
from speed.boot import live_stack
from speed.harness import Comparison, Contender, Result, Sample, alternate, ours_first
from speed.measure import run_checked
from speed.settings import Settings
from speed.worker import PROJECT_DIR, Worker
from ups.config import load_config
from ups.data.blocks import describe_file
from ups.training.step import window_frames

CONFIG = {"cpu": "smoke", "cuda": "train_burgers_32dim"}
EPOCHS, TRAJECTORIES = 25, {"cpu": 256, "cuda": 10_000}
COMPILER = "inductor"  # of `training.compile`
STEPS = 8
SLOW_REPEATS = {"cpu": 1, "cuda": 3}
TIMEOUT_S = 300
NOTES = [
    "Start-up: a fresh `python`, imports included, to the end of the first optimizer step on "
    "made-up latents that are in memory; without Prefect. step s: median of the steps after it.",
    "inductor, empty cache: its cache folder removed before the run; kept cache: what that run "
    "left. The first is run once, the second once on a CPU and 3 times on a GPU: each takes long.",
]
BUCKET, KEY = "bench", "pdebench/burgers.h5"
FOLDER = "gpu-startup"
WHOLE_REPEATS = 3
WHOLE_NOTES = [
    "Whole startup: through Prefect, on a stack of its own, the set in its store on loopback; "
    "nothing staged, no latents, warm start. The store has been asked for the object before, which "
    f"it then hashes. {WHOLE_REPEATS} repeats. The plan hoped for 6 to 9 minutes."
]


def run(settings: Settings) -> Iterator[Comparison]:
    caches = [settings.folder / "inductor", settings.folder / "inductor-triton"]

    def first(compiled: str) -> partial[Sample]:
        return partial(_first_step, settings, caches, compiled)

    def emptied() -> None:
        for folder in caches:
            inputs.empty(folder)

    ways = ("off", "graph") if settings.device == "cuda" else ("off",)
    quick = ours_first({way: first(way) for way in ways})
    results = alternate(quick, settings.repeats, warm_ups=0)
    empty = Contender("inductor, empty cache", "peer", first(COMPILER), emptied)
    warm = Contender("inductor, kept cache", "peer", first(COMPILER))
    slow_repeats = min(SLOW_REPEATS[settings.device], settings.repeats)
    results += [*alternate([empty], 1, 0), *alternate([warm], slow_repeats, 0)]
    yield Comparison(
        phase=f"process start → first step, {CONFIG[settings.device]}, compile off",
        results=results,
        notes=NOTES,
    )
    yield _with_epochs(settings, results)


def _with_epochs(settings: Settings, results: list[Result]) -> Comparison:
    """Start-up plus 25 epochs, which says what the default should be."""
    config = load_config(CONFIG[settings.device])
    num = TRAJECTORIES[settings.device]
    per_step, frames = (
        config.training.batch_size,
        -(-settings.num_frames // config.training.time_stride),
    )
    if config.training.pairs_per_step is not None:
        per_step, num = config.training.pairs_per_step, num * (frames - window_frames(config) + 1)
    num_steps = EPOCHS * -(-num // per_step)
    totals = []
    for result in results:
        steps = result.extras.get("step s", [])
        values = [v + s * num_steps for v, s in zip(result.values, steps, strict=True)]
        totals.append(Result(result.name, result.role, values, failed=result.failed))
    return Comparison(
        phase=f"first step + {EPOCHS} epochs of {num} trajectories, {config.name}, compile off",
        results=totals,
        notes=[f"First step + {EPOCHS} epochs: computed, {num_steps} steps of the measured time."],
    )


def _first_step(settings: Settings, caches: list[Path], compiled: str) -> Sample:
    spec = {
        "config": CONFIG[settings.device],
        "compile": compiled,
        "frames": settings.num_frames,
        "device": settings.device,
        "steps": STEPS,
    }
    folders = zip(("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), map(str, caches), strict=True)
    command = [sys.executable, "-m", "speed.first_step", json.dumps(spec)]
    started = time.time()
    said = run_checked(command, TIMEOUT_S, cwd=PROJECT_DIR, env={**os.environ, **dict(folders)})
    found = json.loads(said.splitlines()[-1])
    extras = {"imports s": found["imported_at"] - started, "step s": found["step_s"]}
    return Sample(found["first_step_at"] - started, extras)


def run_gpu(settings: Settings) -> Iterator[Comparison]:
    source = inputs.solved_set(settings)
    folder = inputs.empty(settings.folder / FOLDER)
    objects = folder / ".stack" / "s3" / BUCKET / KEY
    objects.parent.mkdir(parents=True)
    os.link(source, objects)
    manifest = {objects.name: describe_file(source)}
    objects.with_name("manifest.json").write_text(json.dumps(manifest))
    sources = {
        split: [{"key": KEY, "rows": list(rows)}]
        for split, rows in inputs.solved_rows(settings).items()
    }
    changes = {
        "data.bucket": BUCKET,
        "data.sources": sources,
        "data.generate": None,
        "stages.operator.epochs": 1,
        **inputs.run_places(folder),
    }
    config = inputs.gpu_config(settings, f"{FOLDER}/cache", changes)

    def fresh() -> None:
        for name in ("staged", "cache"):
            shutil.rmtree(folder / name, ignore_errors=True)

    with live_stack(folder, config) as live:
        with Worker("speed.clients", env=live.stack.store_env()) as worker:
            worker.call("first_head", bucket=BUCKET, key=KEY)

        def whole() -> Sample:
            breakdown = live.run_once("warm")
            phases = {f"{p.phase} s": p.seconds for p in breakdown.phases}
            return Sample(breakdown.ttfs_s, phases)

        ours = Contender("ours", "ours", whole, fresh)
        results = alternate([ours], min(WHOLE_REPEATS, settings.repeats), warm_ups=0)
    inputs.empty(folder)
    yield Comparison(
        phase=f"trigger → first step, {source.stat().st_size / 1e9:.2f} GB from a loopback store",
        results=results,
        notes=WHOLE_NOTES,
    )
    yield from run(settings)
