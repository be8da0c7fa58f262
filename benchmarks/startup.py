"""Start-up: from the start of a process to its first optimizer step, for each way to compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import fixture
from benchmarks.harness import Comparison, Contender, Result, Sample, alternate
from benchmarks.settings import Settings
from benchmarks.worker import PROJECT_DIR
from ups.config import load_config

CONFIG = {"cpu": "smoke", "cuda": "train_burgers_32dim"}
EPOCHS, TRAJECTORIES = 25, {"cpu": 256, "cuda": 10_000}
STEPS = 8
SLOW_REPEATS = {"cpu": 1, "cuda": 3}
TIMEOUT_S = 300
NOTES = [
    "Start-up: a fresh `python`, imports included, to the end of the first optimizer step on "
    "made-up latents that are in memory; without Prefect. step s: median of the steps after it.",
    "inductor, empty cache: its cache folder removed before the run; kept cache: what that run "
    "left. The first is run once, the second once on a CPU and 3 times on a GPU: each takes long.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    kept = settings.folder / "inductor"
    first = partial(_first_step, settings, kept)
    quick = [Contender("off", "ours", lambda: first("off"))]
    if settings.device == "cuda":
        quick.append(Contender("graph", "peer", lambda: first("graph")))
    results = alternate(quick, settings.repeats, warm_ups=0)
    empty = Contender(
        "inductor, empty cache", "peer", lambda: first("inductor"), lambda: _removed(kept)
    )
    warm = Contender("inductor, kept cache", "peer", lambda: first("inductor"))
    slow_repeats = min(SLOW_REPEATS[settings.device], settings.repeats)
    slow = [*alternate([empty], 1, 0), *alternate([warm], slow_repeats, 0)]
    results += slow
    yield Comparison(
        section="startup",
        phase=f"process start → first step, {CONFIG[settings.device]}, compile off",
        unit="s",
        better="lower",
        results=results,
        notes=NOTES,
    )
    yield _with_epochs(settings, results)


def _with_epochs(settings: Settings, results: list[Result]) -> Comparison:
    """Start-up plus 25 epochs, which says what the default should be."""
    config = load_config(CONFIG[settings.device])
    num = TRAJECTORIES[settings.device]
    num_steps = EPOCHS * -(-num // config.training.batch_size)
    totals = []
    for result in results:
        steps = result.extras.get("step s", [])
        values = [v + s * num_steps for v, s in zip(result.values, steps, strict=True)]
        totals.append(Result(result.name, result.role, values, failed=result.failed))
    return Comparison(
        section="startup",
        phase=f"first step + {EPOCHS} epochs of {num} trajectories, {config.name}, compile off",
        unit="s",
        better="lower",
        results=totals,
        notes=[f"First step + {EPOCHS} epochs: computed, {num_steps} steps of the measured time."],
    )


def _first_step(settings: Settings, kept: Path, compiled: str) -> Sample:
    spec = {
        "config": CONFIG[settings.device],
        "compile": compiled,
        "frames": settings.num_frames,
        "device": settings.device,
        "steps": STEPS,
    }
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(kept), "TRITON_CACHE_DIR": f"{kept}-triton"}
    command = [sys.executable, "-m", "benchmarks.first_step", json.dumps(spec)]
    started = time.time()
    done = subprocess.run(
        command, cwd=PROJECT_DIR, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    found = json.loads(done.stdout.splitlines()[-1])
    imports = found["imported_at"] - started
    return Sample(
        found["first_step_at"] - started, {"imports s": imports, "step s": found["step_s"]}
    )


def _removed(kept: Path) -> None:
    for folder in (kept, Path(f"{kept}-triton")):
        fixture.empty(folder)
